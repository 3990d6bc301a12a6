"""Pascal VOC 2012 segmentation, UPerNet on Swin-L: frozen trunk as it stands.

No PETL figures are published for it. Model, crops and rate are those of ADE20K; 20,000
iterations of 16 crops are MMSegmentation's schedule for this set.
"""

_base_ = [
    '../_base_/models/upernet_swin_l.py',
    '../_base_/datasets/voc_seg.py',
    '../_base_/schedules/ade20k_160k.py',
    '../_base_/default_runtime.py',
]

dataset = 'voc_seg'
preprocessing = dict(normalisation='imagenet')
model = dict(
    decode_head=dict(num_classes=21),
    auxiliary_head=dict(num_classes=21),
)
train_cfg = dict(max_iters=20000, val_interval=2000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=20000),
]
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=2000),
)
log_processor = dict(by_epoch=False)
