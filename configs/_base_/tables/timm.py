# What the scripts of SSF, HST, GPS and DTL have from timm: the rates between which they
# warm up and cool down, the statistics of its model, a cosine that is stepped before
# each epoch, and ten epochs more at the floor.
values = dict(epochs=100, warmup_epochs=10, warmup_lr=1e-7, min_lr=1e-8)
published = dict(
    preprocessing=dict(normalisation='half', interpolation='bicubic'),
    train_cfg=dict(max_epochs=110),
)
timm = dict(late=False)
