# Widths, positions and scales are those that the paper compares; its rate is 1e-3 for
# every task (visinf/adapter_plus). Rate and decay as V-PETL Bench prints them for its
# methods on VTAB-1k, 7e-4 to 6e-2 and 1e-4 to 1
# (synbol/Parameter-Efficient-Transfer-Learning-Benchmark).
space = {
    'optim_wrapper.optimizer.lr': dict(low=7e-4, high=6e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.hidden_dims': [1, 2, 4, 8, 16, 32],
    'model.backbone.method.position': ['post', 'pre', 'parallel', 'intermediate'],
    'model.backbone.method.scale': ['channel', 'learned', 1.0],
}
