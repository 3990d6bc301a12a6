_base_ = '../recipes/voc.py'

# Leiyi-Hu/mona holds the patch embedding even here (frozen_stages=1 of MMDetection 2);
# we train it too.
model = dict(backbone=dict(method=dict(type='Full')))
