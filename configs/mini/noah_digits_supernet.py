"""NOAH on the handwritten digits, phase 1 of 3: the supernet, on train800."""

_base_ = './digits.py'

model = dict(
    backbone=dict(
        method=dict(
            type='NOAH',
            num_tokens=10,
            rank=10,
            hidden_dims=10,
            space=dict(widths=[1, 5, 10], depths=[2, 4, 6]),
        ),
    ),
)
model_wrapper_cfg = dict(find_unused_parameters=True)  # a step trains one subnet
train_dataloader = dict(dataset=dict(split='train800'))
test_dataloader = None
test_evaluator = None
test_cfg = None
train_cfg = dict(type='mmpetl.NOAHSupernetLoop', max_epochs=60)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, end=4, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=56,
        eta_min=1e-5,
        begin=4,
        end=60,
        convert_to_iter_based=True,
    ),
]
