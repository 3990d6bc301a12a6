_base_ = '../_base_/tables/vpetl_vtab.py'

# Width 8: the script says 96, a reduction of 768.
method = dict(type='Adapter', style='pfeiffer', hidden_dims=8)
