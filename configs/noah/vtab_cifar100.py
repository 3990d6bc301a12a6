_base_ = '../recipes/vtab_cifar100.py'

# The subnet that the authors released for CIFAR-100 (ZhangYuanhan-AI/NOAH,
# experiments/NOAH/subnet/VTAB); lr 1e-3 and decay 1e-4 are the recipe's, from there.
model = dict(
    backbone=dict(
        frozen_drop_path=True,  # their model.train() wakes the trunk's drop path
        method=dict(
            type='NOAH',
            num_tokens=[10, 5, 10, 1, 5, 1, 10, 1, 10, 5, 1, 10],
            rank=[10, 1, 5, 5, 1, 10, 1, 1, 1, 10, 1, 1],
            hidden_dims=[5, 10, 10, 10, 5, 1, 1, 1, 10, 10, 10, 1],
        ),
    ),
)
