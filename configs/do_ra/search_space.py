# No vision table with code: ranges are those of LoRA (V-PETL Bench on VTAB-1k, and the
# grid of the study "Lessons Learned", OSU-MLB/ViT_PEFT_Vision).
space = {
    'optim_wrapper.optimizer.lr': dict(low=5e-4, high=6e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-4, high=1.0, log=True),
    'model.backbone.method.rank': [1, 8, 16, 32],
}
