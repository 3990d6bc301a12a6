_base_ = '../_base_/tables/vpetl_vtab.py'

method = dict(type='AdaptFormer', hidden_dims=8)
