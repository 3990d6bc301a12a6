# Rate and decay: what V-PETL Bench prints for its methods on VTAB-1k, 7e-4 to 6e-2 and
# 1e-4 to 1 (synbol/Parameter-Efficient-Transfer-Learning-Benchmark), with the 3e-4 of
# taoyang1122/adapt-image-models at the lower end of the rate. Widths around its quarter
# of the trunk's.
space = {
    'optim_wrapper.optimizer.lr': dict(low=3e-4, high=6e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.reduction': [2, 4, 8, 16],
}
