# Arnav0400/ViT-Slim, GLoRA: rate and decay 1e-4, ranks up to 4, the paths of each layer
# by evolution, with a method's `space`. Rates and decays as for Hydra.
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-4, high=1e-2, log=True),
    'optim_wrapper.optimizer.weight_decay': dict(low=1e-5, high=1e-3, log=True),
    'model.backbone.method.rank': [1, 2, 4, 8],
}
