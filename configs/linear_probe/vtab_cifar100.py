_base_ = '../recipes/vtab_cifar100.py'

model = dict(
    backbone=dict(method=dict(type='LinearProbe')),
    # Label smoothing 0.1: V-PETL Bench, configs for cifar100.
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=1e-4),  # V-PETL Bench, scripts for cifar100
    paramwise_cfg=dict(decay_all=True),  # one group there, decay on everything
)
