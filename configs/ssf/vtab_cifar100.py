_base_ = '../recipes/vtab_cifar100.py'

# All values: dongzelian/SSF, VTAB script for cifar100.
model = dict(
    backbone=dict(method=dict(type='SSF'), backbone=dict(drop_path_rate=0.0)),
)
train_dataloader = dict(batch_size=32)  # on each of two GPUs
optim_wrapper = dict(optimizer=dict(lr=5e-3, weight_decay=5e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-5, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=90,
        eta_min=1e-8,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
