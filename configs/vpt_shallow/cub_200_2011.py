_base_ = '../recipes/cub_200_2011.py'

# 100 tokens: V-PETL Bench, FGVC scripts.
model = dict(backbone=dict(method=dict(type='VPTShallow', num_tokens=100)))
