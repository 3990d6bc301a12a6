_base_ = '../recipes/cub_200_2011.py'

# CUB-200-2011 of AFeng-x/HST: rate 1e-3, decay 0.05, no drop path, four GPUs x 32
# images. The head reads the pyramid's last width.
model = dict(
    backbone=dict(method=dict(type='HST', drop_path_rate=0.0)),
    head=dict(in_channels=72),
)
train_dataloader = dict(batch_size=128)
sync_bn = 'torch'  # acts in distributed runs, and needs GPUs there
