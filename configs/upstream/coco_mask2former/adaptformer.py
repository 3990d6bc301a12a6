_base_ = 'linear_probe.py'

# Ours: width 64, as on ADE20K with UPerNet.
model = dict(petl=dict(type='AdaptFormer', hidden_dims=64))
