_base_ = '../recipes/vtab_cifar100.py'

# One query per block: the authors' demo. The head reads 768 * (1 + 12) numbers.
model = dict(
    backbone=dict(method=dict(type='VQT', num_tokens=1)),
    head=dict(in_channels=9984),
)
train_dataloader = dict(batch_size=128)
