# heekhero/DTL, DTL+ on VTAB: AdamW, 32 images, ViT-B_16.npz as base.
_base_ = '../_base_/tables/timm.py'

recipes = 'vtab'
method = dict(type='DTL', rank=2, beta=100.0, add_after=[6, 7, 8, 9, 10, 11])
values = dict(batch_size=32, weight_decay=0.05)
tables = dict(
    dtl="""
task                  lr      drop_path  kernel_size
cifar100              0.0005  0.1        3
caltech101            0.0005  0          3
dtd                   0.0003  0.1        5
oxford_flowers102     0.008   0.2        5
oxford_iiit_pet       0.0003  0          3
svhn                  0.005   0.2        5
sun397                0.003   0          5
patch_camelyon        0.003   0          4
eurosat               0.003   0.1        3
resisc45              0.01    0.1        3
diabetic_retinopathy  0.0001  0.1        5
clevr_count           0.0008  0.2        5
clevr_dist            0.001   0.2        4
dmlab                 0.005   0.2        3
kitti                 0.008   0.2        4
dsprites_loc          0.008   0.1        4
dsprites_ori          0.0008  0.2        5
smallnorb_azi         0.003   0.2        5
smallnorb_ele         0.001   0.1        5
"""
)
