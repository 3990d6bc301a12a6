# The grid of the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision) on VTAB-1k.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.hidden_dims': [8, 16],
    'model.backbone.method.scale': [0.01, 0.1, 1, 10, 100],
    'model.backbone.method.conv_init': ['identity', 'xavier'],
}
