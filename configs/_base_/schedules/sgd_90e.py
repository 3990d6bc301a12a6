# Video recipes: SGD, 90 epochs, 10 of them warm-up, half-cosine to 0 per iteration.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=90, val_interval=10)
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmpetl.OwnerOptimWrapperConstructor',
    # 0.1 x batch / 256; 0.4 belongs to the 1,024 clips of auto_scale_lr below.
    optimizer=dict(type='SGD', lr=0.4, momentum=0.9, weight_decay=0.0),
    paramwise_cfg=dict(),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        begin=0,
        end=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=80,
        eta_min=0.0,
        begin=10,
        end=90,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
# Enabled, because the protocol gives the rate per 256 clips: it follows the batch.
batch = 1024  # samples of a step, in whatever processes and passes
auto_scale_lr = dict(enable=True, base_batch_size=1024)
