"""RESISC45, all 25,200 training images; other sizes: dataset=resisc45_9000."""

_base_ = '../../_base_/recipes/many_shot.py'

dataset = 'resisc45_full'
preprocessing = dict(augmentation='study_aerial')
train_cfg = dict(max_epochs=40)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=35,
        eta_min=1e-5,
        begin=5,
        end=40,
        convert_to_iter_based=True,
    ),
]
