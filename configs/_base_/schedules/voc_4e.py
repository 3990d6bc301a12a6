# 4 epochs of a set repeated three times (12 passes), one step after the third.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=1)
optim_wrapper = dict(
    type='OptimWrapper',  # published with mixed precision: tools/train.py --amp
    constructor='mmpetl.OwnerOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(decay_biases=True),
)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=4, milestones=[3], gamma=0.1)
]
batch = 2  # samples of a step, in whatever processes and passes
auto_scale_lr = dict(enable=False, base_batch_size=2)
