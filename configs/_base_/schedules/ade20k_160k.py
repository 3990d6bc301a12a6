# 160,000 iterations, linear warm-up over 1,500, then poly to 0; 8 x 2 images.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmpetl.OwnerOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(decay_biases=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
batch = 16  # samples of a step, in whatever processes and passes
auto_scale_lr = dict(enable=False, base_batch_size=16)
