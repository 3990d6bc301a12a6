_base_ = '../_base_/tables/vpetl_vtab.py'

method = dict(type='LoRA', rank=8)
tables = dict(
    lora="""
task      lr     weight_decay
cifar100  0.005  0.005
"""
)
