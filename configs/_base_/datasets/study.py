# Sets of the "Lessons Learned" study: lists of the training set at several sizes, with
# validation images set apart. A recipe names set and size.
_loader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
_data_root = '{{$MMPETL_DATA:data}}'

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmpetl.StudyImages', split='trainval', data_root=_data_root),
)
val_dataloader = None
test_dataloader = dict(
    **_loader,
    dataset=dict(
        type='mmpetl.StudyImages', split='test', data_root=_data_root, test_mode=True
    ),
)
val_evaluator = None
test_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = None
test_cfg = dict()
tune = dict(
    train_dataloader=dict(dataset=dict(split='train')),
    val_dataloader=dict(dataset=dict(split='val')),
)
del _loader, _data_root
