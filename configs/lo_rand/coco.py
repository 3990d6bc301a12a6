_base_ = '../recipes/coco.py'

# Two products of rank 8, hidden width C / 2: the published 1.20M on Swin-B.
model = dict(backbone=dict(method=dict(type='LoRand')))
