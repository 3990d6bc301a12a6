# Rate and decay as in the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision).
# Widths that its own search chooses from (ZhangYuanhan-AI/NOAH), one for all blocks.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.num_tokens': [1, 5, 10],
    'model.backbone.method.rank': [1, 5, 10],
    'model.backbone.method.hidden_dims': [1, 5, 10],
}
