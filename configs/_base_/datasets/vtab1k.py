# VTAB-1k: 1,000 labelled images. A recipe names the task, the protocol the splits: all
# 1,000 for training and the test set, read once, after it. The stage that chooses
# settings trains on 800 and scores on the 200 left.
_loader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
_data_root = '{{$MMPETL_DATA:data}}/vtab-1k'

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmpetl.VTAB', split='train800val200', data_root=_data_root),
)
val_dataloader = None
test_dataloader = dict(
    **_loader,
    dataset=dict(
        type='mmpetl.VTAB', split='test', data_root=_data_root, test_mode=True
    ),
)
val_evaluator = None
test_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = None
test_cfg = dict()
tune = dict(
    train_dataloader=dict(dataset=dict(split='train800')),
    val_dataloader=dict(dataset=dict(split='val200')),
)
del _loader, _data_root
