# dongzelian/SSF, FGVC scripts: AdamW, two GPUs x 32 images, random crops, timm's label
# smoothing; the average of the weights is what it evaluates.
recipes = 'fgvc'
method = dict(type='SSF')
values = dict(
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-7,
    min_lr=1e-8,
    batch_size=64,  # 2 x 32
    label_smoothing=0.1,
)
# From timm: statistics of its model, cosine stepped before each epoch, ten epochs more
# at the floor.
published = dict(
    preprocessing=dict(normalisation='half', interpolation='bicubic'),
    train_cfg=dict(max_epochs=110),
)
timm = dict(late=False)
preprocessing = dict(augmentation='crops')
tables = dict(
    ssf="""
task            lr       weight_decay  drop_path  ema_decay
cub_200_2011    0.01     0.05          0          0.9998
nabirds         0.0002   0.05          0.1        0.9998
oxford_flowers  0.01     0.05          0.1        0.999
stanford_dogs   0.00025  0.05          0          0.9998
stanford_cars   0.02     0.05          0          0.9998
"""
)
