"""Kinetics-400, VideoMAE ViT-B: linear probing as it stands.

AdaptFormer's video recipe, as for the other sets. The backbone has seen these clips in
pre-training, so this is no test of transfer; V-PETL Bench gives no figure for it.
"""

_base_ = [
    '../_base_/models/videomae_vit_b.py',
    '../_base_/datasets/kinetics400.py',
    '../_base_/schedules/sgd_90e.py',
    '../_base_/default_runtime.py',
]

dataset = 'kinetics400'
preprocessing = dict(normalisation='imagenet')
