_base_ = '../recipes/vtab_cifar100.py'

# All values: showlab/SCT, configs and script for cifar100.
model = dict(
    backbone=dict(method=dict(type='SCT', num_channels=96, scale=0.4)),
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.013, weight_decay=1.0),
    paramwise_cfg=dict(decay_all=True),  # one group there, decay on everything
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6 / 0.013,
        end=10,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=90,
        eta_min=1e-5,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
