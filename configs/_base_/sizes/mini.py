# Sizes of methods that suit the shipped mini backbones (96 channels, six blocks). What
# is not here is the method's own default, made for 768 channels and twelve blocks.
sizes = dict(
    LoRA=dict(rank=4),
    VPTDeep=dict(num_tokens=8),
    LST=dict(reduction=2),
    BAPAT=dict(hidden_dims=16, adapter_dims=16),
    PATT=dict(hidden_dims=16),
    HST=dict(dims=[32, 48, 64], num_heads=[2, 4, 8]),
    VeRA=dict(rank=64),
    ARC=dict(rank=12),
    Compacter=dict(hidden_dims=16),
    Consolidator=dict(groups=[48]),
    Rein=dict(num_tokens=20, rank=4),
    STAdapter=dict(hidden_dims=48),
    VAPT=dict(grid_size=[8, 8]),
)
