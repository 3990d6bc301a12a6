# What --method auto tries: of these, in this order, the first `most` that the trunk can
# serve. One of each kind comes first, so that a transformer gets branches, adapters,
# scales and prompts, and a convolutional network what acts on single layers. The first
# is the one whose speed says how long trials may be, and costs as much as any other.
methods = [
    'LoRA',
    'LinearProbe',
    'AdaptFormer',
    'SSF',
    'VPTDeep',
    'BitFit',
    'LNTune',
    'HRA',
]
most = 5
