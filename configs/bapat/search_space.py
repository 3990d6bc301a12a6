# Rates of SGD per 1,024 clips, up to the 0.4 of AdaptFormer's recipe; widths and
# scales around those of bruceyo/V-PETL.
space = {
    'optim_wrapper.optimizer.lr': dict(low=0.1, high=0.4, log=True),
    'model.backbone.method.hidden_dims': [32, 64, 128],
    'model.backbone.method.scale': [0.2, 0.8],
}
