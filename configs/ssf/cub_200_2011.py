"""SSF's own values for CUB, without the average of the weights that it evaluates."""

_base_ = '../recipes/cub_200_2011.py'

# dongzelian/SSF, FGVC script for cub: lr, decay, drop path, schedule, smoothing, crops.
model = dict(
    backbone=dict(method=dict(type='SSF'), backbone=dict(drop_path_rate=0.0)),
    head=dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
)
train_dataloader = dict(
    batch_size=32,  # on each of two GPUs
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile', imdecode_backend='pillow'),
            dict(type='RandomResizedCrop', scale=224, backend='pillow'),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ]
    ),
)
optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=90,
        eta_min=1e-8,
        begin=10,
        end=100,
        convert_to_iter_based=True,
    ),
]
