_base_ = 'linear_probe.py'

# Ours: rank 16 on queries and values.
model = dict(petl=dict(type='LoRA', rank=16, targets=('attn.q', 'attn.v')))
