_base_ = './cifar100_supernet.py'

# Phase 2 of 3: 15 generations after a random one, 50 candidates each, on val200. Budget
# 0.64M parameters: default of the authors' code.
train_cfg = dict(
    _delete_=True,
    type='mmpetl.NOAHSearchLoop',
    supernet='work_dirs/noah/vtab/cifar100_supernet',
    limit=640_000,
)
param_scheduler = None
val_dataloader = dict(
    _delete_=True,
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.VTAB',
        split='val200',
        data_root='{{$MMPETL_DATA:data}}/vtab-1k',
        test_mode=True,
    ),
)
val_evaluator = dict(_delete_=True, type='Accuracy', topk=(1,))
val_cfg = dict(_delete_=True)
