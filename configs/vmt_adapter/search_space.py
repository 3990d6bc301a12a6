# Rates around the 5e-4 per 512 images of the recipe; reductions around the default.
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-5, high=1e-4, log=True),
    'model.backbone.method.reduction': [8, 16, 32],
}
