_base_ = '../_base_/tables/vpetl_fgvc.py'

# Width 8 as the script says; the printed 0.41M, head included, are those of width 12.
method = dict(type='Adapter', style='pfeiffer', hidden_dims=8)
