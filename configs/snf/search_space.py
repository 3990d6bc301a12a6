# Rate and decay as in the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision).
# Lengths of the flow around the default.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.length': [3, 6, 9],
}
