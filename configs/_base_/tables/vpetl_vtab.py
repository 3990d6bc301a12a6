# VTAB-1k by V-PETL Bench, commit c188fad of
# synbol/Parameter-Efficient-Transfer-Learning-Benchmark: its scripts (rate, decay)
# and configs (smoothing, augmentation, batch, epochs). Its methods share the rates from
# dtd on; each method's table says where it departs.
recipes = 'vtab'
values = dict(
    batch_size=64,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-6,
    min_lr=1e-5,
    drop_path=0.1,
    decay_all=True,  # one group there, decay on everything
)
tables = dict(
    vpetl="""
task                  lr      weight_decay  label_smoothing  augmentation
cifar100              0.01    1             0.1              plain
caltech101            0.006   0.35          0.1              plain
dtd                   0.0032  0.04          0.1              sct
oxford_flowers102     0.05    0.11          0.1              sct
oxford_iiit_pet       0.0007  0.8           0.1              sct
svhn                  0.001   0.005         0.1              sct
sun397                0.0017  0.01          0.1              sct
patch_camelyon        0.0072  0.002         0.1              sct
eurosat               0.06    0.001         0.1              sct
resisc45              0.01    0.01          0.1              sct
diabetic_retinopathy  0.004   0.0003        0.1              sct
clevr_count           0.0033  0.01          0                sct
clevr_dist            0.0018  0.005         0                plain
dmlab                 0.009   0.1           0                sct
kitti                 0.0072  0.0001        0.1              sct
dsprites_loc          0.003   0.001         0                plain
dsprites_ori          0.01    0.05          0                plain
smallnorb_azi         0.0062  0.005         0                plain
smallnorb_ele         0.0011  0.0005        0                plain
"""
)
