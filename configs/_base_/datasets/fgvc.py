# Fine-grained sets with VPT's splits: train, val (chooses), test (read once). A recipe
# names the set. Under `published` SSF, HST and GPS train on split='trainval', which is
# part of their results.
_loader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
_data_root = '{{$MMPETL_DATA:data}}/fgvc'

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='mmpetl.FGVC', split='train', data_root=_data_root),
)
val_dataloader = dict(
    **_loader,
    dataset=dict(type='mmpetl.FGVC', split='val', data_root=_data_root, test_mode=True),
)
test_dataloader = dict(
    **_loader,
    dataset=dict(
        type='mmpetl.FGVC', split='test', data_root=_data_root, test_mode=True
    ),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
val_cfg = dict()
test_cfg = dict()
del _loader, _data_root
