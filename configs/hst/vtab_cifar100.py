_base_ = '../recipes/vtab_cifar100.py'

# CIFAR-100 of AFeng-x/HST: rate 1e-2, decay 5e-4, no drop path, two GPUs x 32 images,
# warm-up from 1e-7, floor 1e-8. The head reads the pyramid's last width.
model = dict(
    backbone=dict(method=dict(type='HST', drop_path_rate=0.0)),
    head=dict(in_channels=72),
)
optim_wrapper = dict(optimizer=dict(lr=1e-2, weight_decay=5e-4))
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-5,
        begin=0,
        end=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=90,
        eta_min=1e-8,
        begin=10,
        end=100,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
sync_bn = 'torch'  # acts in distributed runs, and needs GPUs there
