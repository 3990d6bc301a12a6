# As on VTAB-1k in zstarN70/RLRR: rates 1e-3 to 1e-2, decays 5e-5 and 5e-2, dropout 0 to
# 0.5.
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-3, high=1e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=5e-5, high=5e-2, log=True),
    'model.backbone.method.drop_rate': [0.0, 0.1, 0.3, 0.5],
}
