# ZhangYuanhan-AI/NOAH, experiments/NOAH/subnet/VTAB: the 19 released subnets, trained
# from fresh modules. A width for each of the twelve blocks.
recipes = 'vtab'
method = dict(type='NOAH')
values = dict(
    lr=1e-3,
    weight_decay=1e-4,
    batch_size=64,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-6,
    min_lr=1e-5,
    drop_path=0.1,
)
train_dataloader = dict(drop_last=True)
published = dict(preprocessing=dict(interpolation='bicubic'))
# Their model.train() wakes the trunk's drop path.
model = dict(backbone=dict(frozen_drop_path=True))
tables = dict(
    tokens="""
task                  num_tokens
cifar100              [10,5,10,1,5,1,10,1,10,5,1,10]
caltech101            [5,10,1,5,10,1,10,1,10,1,10,1]
dtd                   [10,5,1,1,5,10,5,1,1,5,1,1]
oxford_flowers102     [10,10,5,5,1,10,1,5,10,1,5,10]
oxford_iiit_pet       [10,5,5,10,1,10,10,10,10,5,10,10]
svhn                  [10,5,5,10,5,5,5,5,5,5,5,5]
sun397                [5,1,10,5,5,10,1,5,1,1,1,1]
patch_camelyon        [10,10,5,10,1,10,10,10,5,1,5,5]
eurosat               [10,10,10,10,10,1,5,5,10,10,5,10]
resisc45              [5,5,10,1,5,1,5,10,1,1,5,1]
diabetic_retinopathy  [10,1,5,10,1,5,5,10,5,10,5,5]
clevr_count           [10,1,5,10,5,1,10,5,5,5,10,1]
clevr_dist            [10,1,1,10,5,10,5,1,5,10,5,5]
dmlab                 [1,10,5,1,10,10,5,10,10,1,1,1]
kitti                 [1,5,10,1,10,5,1,1,1,5,5,5]
dsprites_loc          [5,10,1,10,10,5,5,1,5,5,10,1]
dsprites_ori          [5,5,1,1,10,5,1,10,10,10,10,10]
smallnorb_azi         [1,10,1,10,1,5,10,10,1,10,10,5]
smallnorb_ele         [10,1,1,1,1,5,10,10,10,10,1,10]
""",
    lora="""
task                  rank
cifar100              [10,1,5,5,1,10,1,1,1,10,1,1]
caltech101            [1,10,10,10,5,10,10,10,5,1,10,1]
dtd                   [10,5,1,1,5,10,5,1,1,5,1,1]
oxford_flowers102     [10,10,5,5,1,10,1,5,10,1,5,10]
oxford_iiit_pet       [10,1,1,10,5,1,1,5,10,10,1,10]
svhn                  [5,5,5,10,5,5,5,10,10,10,10,5]
sun397                [10,10,5,5,1,1,10,1,1,1,1,10]
patch_camelyon        [10,10,1,10,1,1,5,5,5,1,5,5]
eurosat               [10,1,10,10,1,5,10,1,1,1,10,1]
resisc45              [10,10,5,5,5,10,10,10,1,5,1,5]
diabetic_retinopathy  [1,1,10,5,5,10,1,10,10,5,10,1]
clevr_count           [1,1,10,5,10,10,10,1,5,1,10,1]
clevr_dist            [5,1,10,5,10,10,1,1,5,10,1,10]
dmlab                 [10,5,1,5,10,10,5,5,5,10,10,1]
kitti                 [5,10,10,10,1,10,5,5,10,5,10,1]
dsprites_loc          [1,1,1,1,10,10,1,10,5,1,5,10]
dsprites_ori          [1,10,1,10,1,5,10,10,5,5,1,5]
smallnorb_azi         [10,5,1,5,1,1,5,5,10,1,1,10]
smallnorb_ele         [10,1,1,1,5,5,10,5,1,10,1,1]
""",
    adapter="""
task                  hidden_dims
cifar100              [5,10,10,10,5,1,1,1,10,10,10,1]
caltech101            [10,1,5,10,10,1,5,5,10,1,5,10]
dtd                   [1,1,1,10,1,1,10,10,10,10,10,1]
oxford_flowers102     [5,1,5,5,1,1,10,5,5,10,5,10]
oxford_iiit_pet       [1,5,5,5,5,10,1,5,10,1,1,5]
svhn                  [5,5,5,5,5,10,5,10,5,5,5,5]
sun397                [10,5,1,1,1,10,5,5,1,1,5,1]
patch_camelyon        [5,1,10,5,5,1,1,10,1,5,1,5]
eurosat               [10,10,5,1,10,1,10,5,10,1,10,10]
resisc45              [5,5,5,1,5,1,10,5,5,1,5,5]
diabetic_retinopathy  [1,1,5,5,10,10,10,5,1,10,10,1]
clevr_count           [1,10,10,10,10,1,5,10,10,10,1,1]
clevr_dist            [1,1,1,10,1,1,1,10,5,1,10,10]
dmlab                 [5,1,5,1,5,1,5,5,5,10,10,10]
kitti                 [5,1,10,10,1,10,1,1,5,10,5,5]
dsprites_loc          [1,1,1,10,1,1,10,10,10,10,10,1]
dsprites_ori          [1,10,10,10,10,1,5,10,10,10,1,1]
smallnorb_azi         [5,1,1,1,5,5,1,10,1,1,5,1]
smallnorb_ele         [1,1,1,10,1,1,10,10,10,10,10,1]
""",
)
