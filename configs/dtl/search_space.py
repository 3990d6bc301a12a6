# Rates as on VTAB-1k in heekhero/DTL, 1e-4 to 1e-2, decay 0.05; kernels of DTL+ from
# there, None being DTL.
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-4, high=1e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': [0.05],
    'model.backbone.method.rank': [2, 4],
    'model.backbone.method.kernel_size': [None, 3, 4, 5],
}
