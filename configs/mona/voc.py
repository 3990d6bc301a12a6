_base_ = '../recipes/voc.py'

# Drop path 0.2, lr 1e-4, decay 0.05 as the recipe: Leiyi-Hu/mona, swin-l_voc.
model = dict(backbone=dict(method=dict(type='Mona')))
