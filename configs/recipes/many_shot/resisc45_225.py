"""RESISC45, five images per class; other sizes: dataset=resisc45_450."""

_base_ = '../../_base_/recipes/many_shot.py'

dataset = 'resisc45_225'
preprocessing = dict(augmentation='study_aerial')
