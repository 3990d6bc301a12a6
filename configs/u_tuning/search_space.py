# Rate and decay as in the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision).
# Sizes around the 10 of the paper; tokens, width and rank are searched apart.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.num_tokens': [5, 10, 20],
    'model.backbone.method.hidden_dims': [5, 10, 20],
}
