_base_ = '../recipes/hmdb51_swin.py'

# Biases and relative-position tables together are the published 1.09M.
model = dict(backbone=dict(method=dict(type='BitFit', include_rel_pos_bias=True)))
