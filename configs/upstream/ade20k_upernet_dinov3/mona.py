_base_ = 'linear_probe.py'

# Ours: the width of Mona on Swin-L, with upstream's rate.
model = dict(petl=dict(type='Mona'))
