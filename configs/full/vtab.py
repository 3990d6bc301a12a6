_base_ = '../_base_/tables/vpetl_vtab.py'

# Usable lines exist for two tasks; the shared table is of methods that train little.
method = dict(type='Full')
values = dict(warmup_lr=1e-4, min_lr=1e-6)  # of its own training script
tables = dict(
    _delete_=True,
    full="""
task        lr      weight_decay  label_smoothing  augmentation
cifar100    0.0005  0.1           0.1              plain
caltech101  0.0005  0.005         0.1              plain
""",
)
