# Rates, decays and drop path as on VTAB-1k in AFeng-x/HST.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 5e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [5e-5, 5e-4, 5e-2],
    'model.backbone.method.drop_path_rate': [0.0, 0.1, 0.2],
}
