# 36 epochs (3x), steps at 27 and 33, linear warm-up over 500 iterations; 16 images.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=36, val_interval=1)
optim_wrapper = dict(
    type='OptimWrapper',  # published with mixed precision: tools/train.py --amp
    constructor='mmpetl.OwnerOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(decay_biases=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(
        type='MultiStepLR',
        by_epoch=True,
        begin=0,
        end=36,
        milestones=[27, 33],
        gamma=0.1,
    ),
]
batch = 16  # samples of a step, in whatever processes and passes
auto_scale_lr = dict(enable=False, base_batch_size=16)
