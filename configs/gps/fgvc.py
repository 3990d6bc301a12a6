# FightingFighting/GPS, FGVC scripts: Adam without decay; it evaluates the average of
# the weights, and trains on train.json and val.json together.
_base_ = ['../_base_/tables/augreg_fgvc.py', '../_base_/tables/gps_views.py']

method = dict(type='GPS')
values = dict(optimizer='Adam', weight_decay=0, published_split='trainval')
tables = dict(
    gps="""
task            lr      drop_path  batch_size  num_weights  ema_decay
cub_200_2011    0.003   0          32          2            0.9998
nabirds         0.0001  0.1        32          20           0.9998
oxford_flowers  0.001   0.1        32          1            0.99
stanford_dogs   0.0001  0          64          1            0.9998
stanford_cars   0.0005  0          32          15           0.9998
"""
)
