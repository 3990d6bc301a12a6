_base_ = '../_base_/tables/vpetl_fgvc.py'

# Rank 8 as the script says; the printed 0.77M, head included, are those of rank 16.
method = dict(type='LoRA', rank=8)
