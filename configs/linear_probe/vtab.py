_base_ = '../_base_/tables/vpetl_vtab.py'

method = dict(type='LinearProbe')
tables = dict(
    linear_probe="""
task      lr     weight_decay
cifar100  0.001  0.0001
"""
)
