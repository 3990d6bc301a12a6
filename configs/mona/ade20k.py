_base_ = '../recipes/ade20k.py'

# Leiyi-Hu/mona, swin-l_ade20k: drop path 0.2 and five times the baselines' rate.
model = dict(
    backbone=dict(method=dict(type='Mona'), backbone=dict(drop_path_rate=0.2)),
)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
