# JieShibo/PETL-ViT, convpass/vtab. The stochastic depth of the branches is that of its
# trunk.
recipes = 'vtab'
method = dict(
    type='Convpass', hidden_dims=8, scale=0.1, conv_init='identity', drop_path_rate=0.1
)
values = dict(
    decay_all=True,  # one group there, decay on everything
)
published = dict(preprocessing=dict(interpolation='bicubic'))
tables = dict(
    convpass="""
task      lr     weight_decay  scale
cifar100  0.001  0.0001        0.1
"""
)
