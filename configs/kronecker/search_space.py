# Of LoKr, LoHa, KAdaptation and Compacter, which share their ranks. Rate and decay as
# V-PETL Bench prints them for its methods on VTAB-1k, 7e-4 to 6e-2 and 1e-4 to 1
# (synbol/Parameter-Efficient-Transfer-Learning-Benchmark). Ranks from the 1 of
# KAdaptation and Compacter to the 8 of PEFT's LoKr and LoHa, and twice that.
space = {
    'optim_wrapper.optimizer.lr': dict(low=7e-4, high=6e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.rank': [1, 2, 4, 8, 16],
}
