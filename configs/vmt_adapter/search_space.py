# Rates around the 5e-4 per 512 images of the recipe; reductions around the default.
space = {
    'optim_wrapper.optimizer.lr': [1e-5, 3e-5, 1e-4],
    'model.backbone.method.reduction': [8, 16, 32],
}
