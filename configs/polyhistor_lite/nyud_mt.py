_base_ = '../recipes/nyud_mt.py'

# No public configuration; the recipe's values stand. Tasks are those of the heads.
model = dict(backbone=dict(method=dict(type='PolyhistorLite')))
