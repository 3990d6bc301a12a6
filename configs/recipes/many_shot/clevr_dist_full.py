"""CLEVR distance, all 70,000 training images: straight to the square."""

_base_ = '../../_base_/recipes/many_shot.py'

dataset = 'clevr_dist_full'
preprocessing = dict(
    normalisation='imagenet', augmentation='plain', interpolation='bilinear'
)
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
