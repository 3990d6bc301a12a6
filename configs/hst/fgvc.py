# AFeng-x/HST, FGVC scripts: AdamW, four GPUs x 32 images. The one drop path rate is
# that of the pyramid and of the trunk. It trains on the official training sets, which
# VPT's lists divide into train and val, except for Flowers, which publishes both.
_base_ = '../_base_/tables/augreg_fgvc.py'

method = dict(type='HST')
values = dict(batch_size=128)  # 4 x 32
preprocessing = dict(augmentation='crops_erased')
sync_bn = 'torch'  # acts in distributed runs, and needs GPUs there
tables = dict(
    hst="""
task            lr      weight_decay  drop_path  drop_path_rate  published_split
cub_200_2011    0.001   0.05          0          0               trainval
nabirds         0.0005  0.05          0          0               trainval
oxford_flowers  0.001   5e-5          0          0               train
stanford_dogs   0.005   0.05          0          0               trainval
stanford_cars   0.005   0.05          0          0               trainval
"""
)
