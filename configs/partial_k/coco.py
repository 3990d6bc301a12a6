_base_ = '../recipes/coco.py'

# The last block without a norm: Leiyi-Hu/mona, swin_transformer_partial_1.py.
model = dict(
    backbone=dict(method=dict(type='PartialK', num_blocks=1, include_final_norm=False))
)
