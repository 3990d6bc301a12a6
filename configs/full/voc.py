_base_ = '../recipes/voc.py'

# Leiyi-Hu/mona freezes the stem and two stages even here; we train every stage.
model = dict(backbone=dict(method=dict(type='Full')))
