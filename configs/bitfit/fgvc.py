_base_ = '../_base_/tables/vpetl_fgvc.py'

method = dict(type='BitFit')
