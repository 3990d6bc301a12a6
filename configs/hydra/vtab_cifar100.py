_base_ = '../recipes/vtab_cifar100.py'

# All values: extremebird/Hydra, vtab1k/configs/hydra_both. The cosine ends with the
# run; theirs is set for 500 epochs.
model = dict(
    backbone=dict(method=dict(type='Hydra', rank=2, scale=0.1, drop_rate=0.2)),
)
train_dataloader = dict(batch_size=16)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4, weight_decay=1e-4),
    paramwise_cfg=dict(decay_all=True),  # one group there, decay on everything
)
