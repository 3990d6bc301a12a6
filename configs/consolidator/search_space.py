# Rates, decays and stochastic depth as THU-MIG/Consolidator prints them on VTAB-1k:
# 5e-4 to 1e-2, 1e-4 to 0.1 and 0 to 0.8. Groups around its 384.
space = {
    'optim_wrapper.optimizer.lr': dict(low=5e-4, high=1e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=0.1, log=True),
    'model.backbone.method.groups': [(96,), (192,), (384,)],
    'model.backbone.method.drop_path_rate': [0.0, 0.2, 0.5, 0.8],
}
