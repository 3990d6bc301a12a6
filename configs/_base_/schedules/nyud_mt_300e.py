# 300 epochs, 20 of warm-up, cosine; the rates are 5e-4 and 5e-6 for 512 images.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=20)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmpetl.OwnerOptimWrapperConstructor',
    optimizer=dict(
        type='AdamW', lr=5e-4 * 32 / 512, betas=(0.9, 0.999), weight_decay=0.05
    ),
    paramwise_cfg=dict(),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=280,
        eta_min=5e-6 * 32 / 512,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
batch = 32  # samples of a step, in whatever processes and passes
auto_scale_lr = dict(enable=False, base_batch_size=32)
