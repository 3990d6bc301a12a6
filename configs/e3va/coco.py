_base_ = '../recipes/coco.py'

# Rank 16 meets the published 1.20M; the recipe is that of the other dense methods.
model = dict(backbone=dict(method=dict(type='E3VA', rank=16)))
