# Rates around the 5e-4 per 512 images of the recipe; ranks around the default.
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-5, high=1e-4, log=True),
    'model.backbone.method.rank': [12, 24, 48],
}
