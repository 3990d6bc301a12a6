_base_ = '../recipes/cub_200_2011.py'

# 10 prefix tokens give the published 0.36M, head included.
model = dict(backbone=dict(method=dict(type='Prefix', num_tokens=10)))
