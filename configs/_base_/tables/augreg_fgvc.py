# SSF, HST and GPS on FGVC: random crops (`--simple-aug`). Their scripts leave on what
# timm's trainer does by default: smoothing 0.1, and Mixup (0.8) or CutMix (1.0) in
# every step. `published_split` is what their public code trains on.
_base_ = './augreg.py'

recipes = 'fgvc'
values = dict(label_smoothing=0.1)
preprocessing = dict(augmentation='crops')
model = dict(
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]
    ),
)
