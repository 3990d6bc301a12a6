# Rates, decays and drop path as on VTAB-1k and FGVC in AFeng-x/HST: 5e-4 to 1e-2, and
# 5e-5 to 5e-2.
space = {
    'optim_wrapper.optimizer.lr': dict(low=5e-4, high=1e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=5e-5, high=5e-2, log=True),
    'model.backbone.method.drop_path_rate': [0.0, 0.1, 0.2],
}
