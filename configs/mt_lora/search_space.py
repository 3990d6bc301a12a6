# Rates around the 5e-4 per 512 images of the recipe; ranks up to the code's 64 and 4.
space = {
    'optim_wrapper.optimizer.lr': dict(low=1e-5, high=1e-4, log=True),
    'model.backbone.method.rank': [16, 32, 64],
    'model.backbone.method.task_rank': [4, 8, 16],
}
