# Rates as on VTAB-1k in FightingFighting/GPS, 3e-4 to 1e-2, without decay; weights per
# neuron as there, 1 and 2, and 20 at most on FGVC.
space = {
    'optim_wrapper.optimizer.lr': dict(low=3e-4, high=1e-2, log=True),
    'model.backbone.method.num_weights': [1, 2, 5, 20],
}
