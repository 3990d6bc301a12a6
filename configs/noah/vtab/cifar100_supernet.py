_base_ = '../../recipes/vtab/cifar100.py'

# Phase 1 of 3: trains on train800; the next phase scores on the 200 left. Epochs, lr,
# decay, warm-up from 1e-6, floor: ZhangYuanhan-AI/NOAH.
model = dict(
    backbone=dict(
        frozen_drop_path=True,  # their model.train() wakes the trunk's drop path
        method=dict(
            type='NOAH',
            num_tokens=100,
            rank=100,
            hidden_dims=100,
            space=dict(widths=[1, 5, 10], depths=[3, 6, 9, 12]),
        ),
    ),
)
model_wrapper_cfg = dict(find_unused_parameters=True)  # a step trains one subnet
train_dataloader = dict(drop_last=True, dataset=dict(split='train800'))
test_dataloader = None
test_evaluator = None
test_cfg = None
train_cfg = dict(type='mmpetl.NOAHSupernetLoop', max_epochs=500)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=2e-3, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=490,
        eta_min=1e-5,
        begin=10,
        end=500,
        convert_to_iter_based=True,
    ),
]
