"""ADE20K, Mask2Former on Swin-L: upstream's recipe, frozen trunk, heads train.

No published settings of tuning methods exist for it; the leaves are ours.
"""

_base_ = (
    'mmseg::mask2former/'
    'mask2former_swin-l-in22k-384x384-pre_8xb2-160k_ade20k-640x640.py'
)

model = dict(
    type='mmpetl.PETLModel', of=_base_.model.type, petl=dict(type='LinearProbe')
)
runner_type = 'mmpetl.TuningRunner'
