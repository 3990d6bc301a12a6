# zstarN70/RLRR, RLRRDatasets/VTABConfig.py: AdamW, 32 images, ViT-B_16.npz. Its "drop
# path" is dropout of single elements; its light augmentation is a flip. Scales of rows
# and columns, and the pair behind the patches, decay there; shifts and other pairs not.
_base_ = '../_base_/tables/timm.py'

recipes = 'vtab'
method = dict(type='RLRR')
values = dict(batch_size=32)
timm = dict(late=True)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            '.s_in': dict(decay_mult=1.0),
            '.s_out': dict(decay_mult=1.0),
            'petl.embed_proj': dict(decay_mult=1.0),
        }
    )
)
tables = dict(
    rlrr="""
task                  lr     weight_decay  drop_rate  augmentation
cifar100              0.003  5e-5          0.1        plain
caltech101            0.001  5e-5          0.1        plain
dtd                   0.002  5e-5          0.1        flip
oxford_flowers102     0.003  0.05          0.3        plain
oxford_iiit_pet       0.001  5e-5          0.1        flip
svhn                  0.005  5e-5          0.3        plain
sun397                0.001  5e-5          0.1        plain
patch_camelyon        0.003  0.05          0.3        flip
eurosat               0.001  5e-5          0.1        flip
resisc45              0.003  5e-5          0          plain
diabetic_retinopathy  0.005  5e-5          0.1        flip
clevr_count           0.005  5e-5          0.5        flip
clevr_dist            0.01   5e-5          0.2        flip
dmlab                 0.005  5e-5          0.3        flip
kitti                 0.003  0.05          0.3        flip
dsprites_loc          0.01   5e-5          0.1        plain
dsprites_ori          0.005  5e-5          0.1        plain
smallnorb_azi         0.005  0.05          0.3        plain
smallnorb_ele         0.001  5e-5          0.3        flip
"""
)
