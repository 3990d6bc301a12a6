"""CIFAR-100, five images per class; other sizes: dataset=cifar100_1k."""

_base_ = '../../_base_/recipes/many_shot.py'

dataset = 'cifar100_500'
