# The grid of the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision) on VTAB-1k.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
}
