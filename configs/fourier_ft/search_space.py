# The paper trains ViTs with 3,000 or 10,000 coefficients, the factor 300 and rates of
# some tenths; the range of rates reaches down to those of other methods. Decay: what
# V-PETL Bench prints for its methods on VTAB-1k, 1e-4 to 1
# (synbol/Parameter-Efficient-Transfer-Learning-Benchmark).
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-3, high=0.5, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.num_coefficients': [1000, 3000, 10000],
}
