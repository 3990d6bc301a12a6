"""Something-Something V2, VideoMAE ViT-B: linear probing as it stands.

AdaptFormer's video recipe, which V-PETL Bench reuses: SGD with 0.1 per 256 clips, no
weight decay, 90 epochs with 10 of warm-up, 8 frames at stride 4, neither mixing nor
smoothing, a batch norm in front of the head. The last epoch is reported with 4 clips x
3 crops.
"""

_base_ = [
    '../_base_/models/videomae_vit_b.py',
    '../_base_/datasets/ssv2.py',
    '../_base_/schedules/sgd_90e.py',
    '../_base_/default_runtime.py',
]

dataset = 'ssv2'
preprocessing = dict(normalisation='imagenet')
