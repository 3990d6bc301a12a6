# Rates and decays as on VTAB-1k in dongzelian/SSF, 1e-3 to 5e-2 and 5e-5 to 5e-2. They
# hold the grid of the study "Lessons Learned" (OSU-MLB/ViT_PEFT_Vision).
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-3, high=5e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=5e-5, high=5e-2, log=True),
}
