# FightingFighting/GPS, FGVC scripts: Adam without decay, random crops, timm's label
# smoothing; it evaluates the average of the weights, and trains on train.json and
# val.json together.
recipes = 'fgvc'
method = dict(type='GPS')
values = dict(
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-7,
    min_lr=1e-8,
    optimizer='Adam',
    weight_decay=0,
    label_smoothing=0.1,
)
# From timm: statistics of its model, cosine stepped before each epoch, ten epochs more
# at the floor.
published = dict(
    preprocessing=dict(normalisation='half', interpolation='bicubic'),
    train_cfg=dict(max_epochs=110),
    train_dataloader=dict(dataset=dict(split='trainval')),
)
timm = dict(late=False)
preprocessing = dict(augmentation='crops')
tables = dict(
    gps="""
task            lr      drop_path  batch_size  num_weights  ema_decay
cub_200_2011    0.003   0          32          2            0.9998
nabirds         0.0001  0.1        32          20           0.9998
oxford_flowers  0.001   0.1        32          1            0.99
stanford_dogs   0.0001  0          64          1            0.9998
stanford_cars   0.0005  0          32          15           0.9998
"""
)
