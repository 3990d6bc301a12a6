# Rates from the 4e-3 on with which the paper tunes ViTs, up to the largest that V-PETL
# Bench prints for its methods on VTAB-1k, 6e-2; decays are that benchmark's, 1e-4 to 1
# (synbol/Parameter-Efficient-Transfer-Learning-Benchmark). Ranks around the 256 of the
# paper's ViTs; starts of lambda_d are those that its ablation tries.
space = {
    'optim_wrapper.optimizer.lr': dict(low=4e-3, high=6e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.rank': [64, 256, 1024],
    'model.backbone.method.d_initial': [1e-7, 0.1, 1.0],
}
