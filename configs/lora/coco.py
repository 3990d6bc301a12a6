_base_ = '../recipes/coco.py'

# Rank 64 on q and v, alpha 1: Leiyi-Hu/mona, swin_transformer_lora.py.
model = dict(backbone=dict(method=dict(type='LoRA', rank=64, alpha=1)))
