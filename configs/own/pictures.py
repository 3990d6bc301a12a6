"""A classifier of a person's own pictures; tools/train_own.py fills in what is theirs.

Trunk, statistics, pipelines, class count, and how long to train follow from the model
and the pictures (mmpetl/own). Settings are chosen on train and val, then one run trains
on both and reads the test set once.
"""

_base_ = [
    '../_base_/models/vit_b16_in21k.py',
    '../_base_/schedules/adamw_100e.py',
    '../_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        backbone=dict(
            _delete_=True, type='mmpetl.TimmBackbone', model_name='vit_base_patch16_224'
        ),
        checkpoint=None,
    ),
    head=dict(num_classes=2),
)
_loader = dict(
    batch_size=64, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False)
)
_data = dict(
    type='mmpetl.OwnPictures',
    data_root='{{$MMPETL_DATA:data}}/own',
    splits='{{$MMPETL_DATA:data}}/own/splits.json',
    pipeline=[],
)
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(**_data, split='trainval'),
)
val_dataloader = None
test_dataloader = dict(**_loader, dataset=dict(**_data, split='test', test_mode=True))
val_evaluator = None
test_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = None
test_cfg = dict()
tune = dict(
    train_dataloader=dict(dataset=dict(split='train')),
    val_dataloader=dict(dataset=dict(split='val')),
)
del _data, _loader
