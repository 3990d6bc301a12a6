"""COCO panoptic, Mask2Former on Swin-L: upstream's recipe, frozen trunk, heads train.

No published settings of tuning methods exist for it; the leaves are ours.
"""

_base_ = (
    'mmdet::mask2former/'
    'mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic.py'
)

model = dict(
    type='mmpetl.PETLModel', of=_base_.model.type, petl=dict(type='LinearProbe')
)
runner_type = 'mmpetl.TuningRunner'
