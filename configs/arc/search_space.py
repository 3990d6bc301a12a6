# Rates around the 0.01 that the authors' code takes for every task (DavidYanAnDe/ARC),
# within what V-PETL Bench prints for its methods on VTAB-1k, 7e-4 to 6e-2
# (synbol/Parameter-Efficient-Transfer-Learning-Benchmark); its decays are 1e-4 to 1.
# Ranks around the 50 of the paper.
space = {
    'optim_wrapper.optimizer.lr': dict(low=7e-4, high=6e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.rank': [10, 50, 100],
}
