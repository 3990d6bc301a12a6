# Rates and decays as on VTAB-1k in V-PETL Bench, 5e-4 to 0.085 and 1e-4 to 0.6; scales
# from there, 0.1 to 1. Channels: multiples of the 96 of the paper.
space = {
    'optim_wrapper.optimizer.lr': dict(low=5e-4, high=0.085, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=0.6, log=True),
    'model.backbone.method.num_channels': [48, 96, 192],
    'model.backbone.method.scale': dict(low=0.1, high=1.0, log=True),
}
