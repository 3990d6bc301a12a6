# AFeng-x/HST, FGVC scripts: AdamW, four GPUs x 32 images, random crops, timm's label
# smoothing.
recipes = 'fgvc'
method = dict(type='HST')
values = dict(
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-7,
    min_lr=1e-8,
    batch_size=128,  # 4 x 32
    label_smoothing=0.1,
)
# From timm: statistics of its model, cosine stepped before each epoch, ten epochs more
# at the floor.
published = dict(
    preprocessing=dict(normalisation='half', interpolation='bicubic'),
    train_cfg=dict(max_epochs=110),
    model=dict(backbone=dict(frozen_drop_path=False)),  # theirs is of the pyramid
)
timm = dict(late=False)
preprocessing = dict(augmentation='crops')
sync_bn = 'torch'  # acts in distributed runs, and needs GPUs there
tables = dict(
    hst="""
task            lr      weight_decay  drop_path_rate
cub_200_2011    0.001   0.05          0
nabirds         0.0005  0.05          0
oxford_flowers  0.001   5e-5          0
stanford_dogs   0.005   0.05          0
stanford_cars   0.005   0.05          0
"""
)
