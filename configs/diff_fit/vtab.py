# OSU-MLB/ViT_PEFT_Vision, VTAB-1k: chosen on 800/200 from its grid of rate and decay.
# Its inputs are not normalised, which the published protocol repeats.
recipes = 'vtab'
method = dict(type='DiffFit')
values = dict(
    batch_size=64,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-6,
    min_lr=1e-5,
    drop_path=0.1,
    decay_all=True,  # one group there, decay on everything
)
published = dict(preprocessing=dict(normalisation='none', interpolation='bicubic'))
tables = dict(
    diff_fit="""
task                  lr     weight_decay
cifar100              0.001  0.001
caltech101            0.001  0.0001
dtd                   0.001  0.0001
oxford_flowers102     0.001  0.001
oxford_iiit_pet       0.001  0.0001
svhn                  0.01   0.001
sun397                0.001  0.001
patch_camelyon        0.001  0.001
eurosat               0.001  0.001
resisc45              0.01   0.0001
diabetic_retinopathy  0.001  0.0001
clevr_count           0.001  0.0001
clevr_dist            0.001  0.001
dmlab                 0.01   0.001
kitti                 0.01   0.0001
dsprites_loc          0.01   0.001
dsprites_ori          0.01   0.001
smallnorb_azi         0.01   0.0001
smallnorb_ele         0.001  0.001
"""
)
