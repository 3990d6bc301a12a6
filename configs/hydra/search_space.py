# As on VTAB-1k in extremebird/Hydra: rates from 5e-4, decays from 1e-5, scales from 0.1
# to 4.5; rates and decays up to the 1e-2 and 1e-3 of the study "Lessons Learned"
# (OSU-MLB/ViT_PEFT_Vision).
space = {
    'optim_wrapper.optimizer.lr': dict(low=5e-4, high=1e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-5, high=1e-3, log=True),
    'model.backbone.method.rank': [1, 2, 4, 8],
    'model.backbone.method.scale': dict(low=0.1, high=4.5, log=True),
}
