"""CIFAR-100, all 50,000 training images; other sizes: dataset=cifar100_10k."""

_base_ = '../../_base_/recipes/many_shot.py'

dataset = 'cifar100_full'
train_cfg = dict(max_epochs=40)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=4, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=36,
        eta_min=1e-5,
        begin=4,
        end=40,
        convert_to_iter_based=True,
    ),
]
