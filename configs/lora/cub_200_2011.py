_base_ = '../recipes/cub_200_2011.py'

# Rank 16 gives the published 0.77M, head included; the script says 8.
model = dict(backbone=dict(method=dict(type='LoRA', rank=16)))
train_dataloader = dict(batch_size=128)  # V-PETL Bench, FGVC script of LoRA
