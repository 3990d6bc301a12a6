# Rate and decay: what V-PETL Bench prints for its methods on VTAB-1k, 7e-4 to 6e-2 and
# 1e-4 to 1 (synbol/Parameter-Efficient-Transfer-Learning-Benchmark), and from the 5e-4
# of the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision) on, whose grid they hold.
# Ranks around the paper's 8, and the depth of its code or none.
space = {
    'optim_wrapper.optimizer.lr': dict(low=5e-4, high=6e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.rank': [4, 8, 16],
    'model.backbone.method.drop_path': [0.0, 0.1],
}
