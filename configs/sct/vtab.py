_base_ = '../_base_/tables/vpetl_vtab.py'

# SCT's own scripts as V-PETL Bench carries them. Its model file has the lines of scale
# and scale_on_x commented out; here they act. The last row comes without augmentation.
method = dict(type='SCT', num_channels=96)
tables = dict(
    _delete_=True,
    training="""
task                  lr      weight_decay  label_smoothing  augmentation  batch_size
cifar100              0.012   0.6           0.1              plain         64
caltech101            0.006   0.25          0.1              plain         64
dtd                   0.003   0.005         0.1              sct           64
oxford_flowers102     0.085   0.07          0.1              plain         32
oxford_iiit_pet       0.0005  0.3           0.1              sct           32
svhn                  0.075   0.03          0.1              sct           32
sun397                0.0015  0.0001        0.1              plain         32
patch_camelyon        0.0072  0.002         0.1              sct           32
eurosat               0.07    0.001         0.1              sct           64
resisc45              0.01    0.01          0.1              sct           32
diabetic_retinopathy  0.003   0.0001        0.1              sct           64
clevr_count           0.0033  0.01          0                sct           64
clevr_dist            0.002   0.001         0                sct           64
dmlab                 0.007   0.05          0                sct           64
kitti                 0.007   0.005         0.1              sct           64
dsprites_loc          0.004   0.001         0                plain         64
dsprites_ori          0.005   0.005         0                plain         64
smallnorb_azi         0.008   0.07          0                plain         32
smallnorb_ele         0.0013  0.0001        0                -             32
""",
    sct="""
task                  scale  scale_on_x
cifar100              0.4    False
caltech101            1      False
dtd                   0.25   False
oxford_flowers102     0.15   False
oxford_iiit_pet       0.2    False
svhn                  0.15   False
sun397                0.15   False
patch_camelyon        0.17   False
eurosat               0.1    False
resisc45              0.4    False
diabetic_retinopathy  0.75   False
clevr_count           0.52   True
clevr_dist            0.1    True
dmlab                 0.3    False
kitti                 0.5    False
dsprites_loc          0.3    True
dsprites_ori          0.5    True
smallnorb_azi         1      True
smallnorb_ele         0.65   True
""",
)
