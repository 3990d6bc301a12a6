_base_ = '../recipes/vtab_cifar100.py'

# All values: JieShibo/PETL-ViT, convpass/vtab. The stochastic depth of the branches is
# that of its trunk.
model = dict(
    backbone=dict(
        method=dict(
            type='Convpass',
            hidden_dims=8,
            scale=0.1,
            conv_init='identity',
            drop_path_rate=0.1,
        )
    ),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=1e-4),
    paramwise_cfg=dict(decay_all=True),  # one group there, decay on everything
)
