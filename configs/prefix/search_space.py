# Rate and decay as in the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision).
# Tokens around the 10 that give the published count on FGVC.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.num_tokens': [5, 10, 20],
}
