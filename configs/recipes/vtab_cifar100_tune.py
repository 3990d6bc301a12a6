"""To choose settings on CIFAR-100 of VTAB-1k: trains on 800, scores on the 200 left.

The test set is not touched here. Train once with recipes/vtab_cifar100.py afterwards.
"""

_base_ = './vtab_cifar100.py'

train_dataloader = dict(dataset=dict(split='train800'))
val_dataloader = dict(
    _delete_=True,
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.VTAB',
        task='cifar100',
        split='val200',
        data_root='{{$MMPETL_DATA:data}}/vtab-1k',
        pipeline={{_base_.test_pipeline}},
        test_mode=True,
    ),
)
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1,))
val_cfg = dict(_delete_=True)
test_dataloader = None
test_evaluator = None
test_cfg = None
