# visinf/adapter_plus on FGVC, experiment adapter_plus_dim1-32: the recipe of its VTAB
# with random crops, trained on train.json and val.json together.
recipes = 'fgvc'
method = dict(type='AdapterPlus', drop_path_rate=0.1)
values = dict(
    lr=1e-3,
    weight_decay=1e-4,
    batch_size=64,
    epochs=100,
    warmup_epochs=10,
    warmup_lr=1e-5,
    min_lr=1e-6,
    drop_path=0.1,
    published_split='trainval',
)
preprocessing = dict(augmentation='crops')
published = dict(preprocessing=dict(normalisation='half', interpolation='bicubic'))
timm = None
tables = dict(
    adapter_plus="""
task            hidden_dims
cub_200_2011    2
nabirds         2
oxford_flowers  1
stanford_dogs   1
stanford_cars   32
"""
)
