_base_ = '../recipes/hmdb51_swin.py'

# Width 128, scale 0.8, batch 16, 70 epochs, 10 of them warm-up, every second frame:
# bruceyo/V-PETL.
model = dict(
    backbone=dict(method=dict(type='BAPAT', hidden_dims=128, scale=0.8)),
)
batch = 16
train_dataloader = dict(batch_size=16)
train_cfg = dict(max_epochs=70)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        begin=0,
        end=10,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=60,
        eta_min=0.0,
        begin=10,
        end=70,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
for _loader in 'train_dataloader', 'val_dataloader', 'test_dataloader':
    _base_[_loader].dataset.pipeline[1].frame_interval = 2
del _loader
