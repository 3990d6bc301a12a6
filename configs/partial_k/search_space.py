# Rate and decay as in the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision).
# Blocks from the end, up to a third of a ViT-B.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.num_blocks': [1, 2, 4],
}
