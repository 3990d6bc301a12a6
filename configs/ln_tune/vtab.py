_base_ = '../_base_/tables/vpetl_vtab.py'

method = dict(type='LNTune')
tables = dict(
    ln_tune="""
task        lr     weight_decay
cifar100    0.008  0.01
caltech101  0.005  0.01
"""
)
