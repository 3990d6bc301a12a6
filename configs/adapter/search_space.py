# The grid of the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision) on VTAB-1k.
# Its two designs: one adapter behind the feed-forward network, and one behind each half
# of a block, where it leaves out width 64.
space = {
    'optim_wrapper.optimizer.lr': [1e-3, 1e-2],
    'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-3],
    'model.backbone.method.style': ['pfeiffer', 'houlsby'],
    'model.backbone.method.hidden_dims': [4, 8, 16, 32, 64],
    'model.backbone.method.scale': [0.01, 0.1, 1, 10],
}
