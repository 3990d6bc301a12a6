_base_ = '../_base_/tables/vpetl_vtab.py'

method = dict(type='VPTShallow', num_tokens=100)
tables = dict(
    vpt_shallow="""
task      lr     weight_decay
cifar100  0.001  0.0001
"""
)
