# Rates around the 5e-4 per 512 images of the recipe; ranks around the default.
space = {
    'optim_wrapper.optimizer.lr': [1e-5, 3e-5, 1e-4],
    'model.backbone.method.rank': [12, 24, 48],
}
