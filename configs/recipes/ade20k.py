"""ADE20K, UPerNet on Swin-L: frozen trunk as it stands, decode heads train.

Values of Mona's public configs for its baselines: AdamW 6e-5, weight decay 0.01, drop
path 0.3 (also in the frozen trunk), 160,000 iterations, 8 GPUs x 2 crops of 512 x 512,
fp32, single scale on the whole image.
"""

_base_ = [
    '../_base_/models/upernet_swin_l.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k_160k.py',
    '../_base_/default_runtime.py',
]

dataset = 'ade20k'
preprocessing = dict(normalisation='imagenet')
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=16000),
)
log_processor = dict(by_epoch=False)
