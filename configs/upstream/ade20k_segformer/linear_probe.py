"""ADE20K, SegFormer on MiT-B5: upstream's recipe, frozen trunk, heads train.

No published settings of tuning methods exist for it; the leaves are ours.
"""

_base_ = 'mmseg::segformer/segformer_mit-b5_8xb2-160k_ade20k-640x640.py'

model = dict(
    type='mmpetl.PETLModel', of=_base_.model.type, petl=dict(type='LinearProbe')
)
runner_type = 'mmpetl.TuningRunner'
