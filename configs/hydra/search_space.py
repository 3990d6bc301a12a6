# Rate and decay as in the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision).
# Scales as on VTAB-1k in extremebird/Hydra, from 0.1 to 4.5.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.rank': [1, 2, 4, 8],
    'model.backbone.method.scale': dict(low=0.1, high=4.5, log=True),
}
