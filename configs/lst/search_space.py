# Rate and decay as in the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision).
# Reductions of the side network around the 8 of the paper.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.reduction': [4, 8, 16],
}
