_base_ = '../recipes/nyud_mt.py'

# The values of the recipe are those of the public code. Tasks are those of the heads.
model = dict(backbone=dict(method=dict(type='MTLoRA')))
