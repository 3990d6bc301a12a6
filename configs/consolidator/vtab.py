# THU-MIG/Consolidator on VTAB, train_consolidator_vtab.sh: one branch of 384 groups,
# and what the code trains of the base. `drop_path_rate` is the branches'.
recipes = 'vtab'
method = dict(type='Consolidator', groups=(384,))
values = dict(
    batch_size=64,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-6,
    min_lr=1e-5,
    drop_path=0.1,
)
train_dataloader = dict(drop_last=True)
published = dict(preprocessing=dict(interpolation='bicubic'))
tables = dict(
    consolidator="""
task                  lr      weight_decay  drop_path_rate
cifar100              0.001   0             0.8
caltech101            0.002   0.01          0.2
dtd                   0.002   0.1           0.8
oxford_flowers102     0.002   0.01          0.8
oxford_iiit_pet       0.002   0             0.8
svhn                  0.01    0.001         0.5
sun397                0.001   0.001         0.8
patch_camelyon        0.005   0.01          0.2
eurosat               0.002   0.01          0
resisc45              0.005   0.1           0
diabetic_retinopathy  0.001   0.1           0.8
clevr_count           0.001   0.0001        0.2
clevr_dist            0.0005  0.01          0.5
dmlab                 0.005   0.01          0.8
kitti                 0.005   0.001         0
dsprites_loc          0.005   0.1           0.8
dsprites_ori          0.01    0.001         0.8
smallnorb_azi         0.01    0.1           0.8
smallnorb_ele         0.0005  0.1           0.2
"""
)
