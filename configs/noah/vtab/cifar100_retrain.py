_base_ = '../../recipes/vtab/cifar100.py'

# Phase 3 of 3: the found subnet from fresh modules on all 1,000 images, by the ordinary
# loop; lr 1e-3 and decay 1e-4 are the recipe's, from ZhangYuanhan-AI/NOAH.
model = dict(
    backbone=dict(
        frozen_drop_path=True,  # their model.train() wakes the trunk's drop path
        method=dict(
            type='NOAH', found='work_dirs/noah/vtab/cifar100_search/found.json'
        ),
    ),
)
train_dataloader = dict(drop_last=True)
