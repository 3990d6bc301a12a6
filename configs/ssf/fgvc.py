# dongzelian/SSF, FGVC scripts: AdamW, two GPUs x 32 images; the average of the weights
# is what it evaluates. It trains on the official training sets, which VPT's lists
# divide into train and val, except for Flowers, which publishes both.
_base_ = '../_base_/tables/augreg_fgvc.py'

method = dict(type='SSF')
values = dict(batch_size=64)  # 2 x 32
preprocessing = dict(augmentation='crops_erased')
tables = dict(
    ssf="""
task            lr       weight_decay  drop_path  ema_decay  published_split
cub_200_2011    0.01     0.05          0          0.9998     trainval
nabirds         0.0002   0.05          0.1        0.9998     trainval
oxford_flowers  0.01     0.05          0.1        0.999      train
stanford_dogs   0.00025  0.05          0          0.9998     trainval
stanford_cars   0.02     0.05          0          0.9998     trainval
"""
)
