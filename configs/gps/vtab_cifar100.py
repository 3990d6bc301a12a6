_base_ = '../recipes/vtab_cifar100.py'

# All values: FightingFighting/GPS, VTAB script for cifar100.
model = dict(
    backbone=dict(
        method=dict(type='GPS', num_weights=1), backbone=dict(drop_path_rate=0.0)
    ),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='Adam', lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0
    )
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=90,
        eta_min=1e-8,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
