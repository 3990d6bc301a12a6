"""COCO boxes, DINO on Swin-L, five scales: upstream's recipe, frozen trunk.

No published settings of tuning methods exist for it; the leaves are ours.
"""

_base_ = 'mmdet::dino/dino-5scale_swin-l_8xb2-36e_coco.py'

model = dict(
    type='mmpetl.PETLModel', of=_base_.model.type, petl=dict(type='LinearProbe')
)
runner_type = 'mmpetl.TuningRunner'
