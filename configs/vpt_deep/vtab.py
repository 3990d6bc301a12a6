# OSU-MLB/ViT_PEFT_Vision, VTAB-1k: chosen on 800/200 from 5, 10, 50 or 100 tokens.
# Its inputs are not normalised, which the published protocol repeats.
recipes = 'vtab'
method = dict(type='VPTDeep', drop_rate=0.1)
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
    vpt_deep="""
task                  lr     weight_decay  num_tokens
cifar100              0.001  0.001         5
caltech101            0.01   0.0001        50
dtd                   0.01   0.0001        100
oxford_flowers102     0.01   0.001         10
oxford_iiit_pet       0.01   0.0001        5
svhn                  0.001  0.001         50
sun397                0.01   0.001         10
patch_camelyon        0.01   0.001         5
eurosat               0.01   0.0001        50
resisc45              0.01   0.0001        5
diabetic_retinopathy  0.01   0.001         100
clevr_count           0.001  0.001         50
clevr_dist            0.001  0.001         100
dmlab                 0.001  0.001         5
kitti                 0.01   0.001         50
dsprites_loc          0.01   0.0001        100
dsprites_ori          0.001  0.0001        100
smallnorb_azi         0.001  0.001         50
smallnorb_ele         0.01   0.0001        50
"""
)
