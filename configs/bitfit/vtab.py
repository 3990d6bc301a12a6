_base_ = '../_base_/tables/vpetl_vtab.py'

method = dict(type='BitFit')
tables = dict(
    bitfit="""
task        lr     weight_decay
cifar100    0.003  0.0001
caltech101  0.006  0.25
"""
)
