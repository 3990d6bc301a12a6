_base_ = '../recipes/coco.py'

# Drop path 0.3, lr 1e-4, decay 0.05 as the recipe: Leiyi-Hu/mona, swin-b_coco.
model = dict(backbone=dict(method=dict(type='Mona')))
