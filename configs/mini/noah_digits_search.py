"""NOAH on the handwritten digits, phase 2 of 3: the search, on val200."""

_base_ = './noah_digits_supernet.py'

train_cfg = dict(
    _delete_=True,
    type='mmpetl.NOAHSearchLoop',
    supernet='work_dirs/noah/mini/noah_digits_supernet',
    limit=20_000,
    evolution=dict(generations=6, population=20, parents=6, mutations=8, crossovers=8),
)
param_scheduler = None
val_dataloader = dict(
    _delete_=True,
    batch_size=200,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.VTAB',
        task='digits',
        num_classes=10,
        split='val200',
        data_root='{{$MMPETL_DATA:data}}/vtab-1k',
        test_mode=True,
    ),
)
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1,))
val_cfg = dict(_delete_=True)
