# Rate and decay: what V-PETL Bench prints for its methods on VTAB-1k, 7e-4 to 6e-2 and
# 1e-4 to 1 (synbol/Parameter-Efficient-Transfer-Learning-Benchmark), and from the 5e-4
# of the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision) on, whose grid they hold.
# Factors: those of the paper's tables.
space = {
    'optim_wrapper.optimizer.lr': dict(low=5e-4, high=6e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.scale': [0.01, 0.1, 1, 10],
}
