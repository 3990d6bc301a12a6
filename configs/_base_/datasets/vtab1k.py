# VTAB-1k: 1,000 labelled images. The recipe names the task; the default protocol trains
# on all 1,000 and reads the test set once, after training (tools/test.py). To choose
# settings, train on train800 and score on val200: recipes/vtab_cifar100_tune.py.
# Straight to 224 x 224, ratio not kept, no augmentation: the protocol of VTAB-1k.
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
test_pipeline = train_pipeline

train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpetl.VTAB',
        task='cifar100',
        split='train800val200',
        data_root='{{$MMPETL_DATA:data}}/vtab-1k',
        pipeline=train_pipeline,
    ),
)
val_dataloader = None
test_dataloader = dict(
    batch_size=128,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.VTAB',
        task='cifar100',
        split='test',
        data_root='{{$MMPETL_DATA:data}}/vtab-1k',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_evaluator = None
test_evaluator = dict(type='Accuracy', topk=(1,))
val_cfg = None
test_cfg = dict()
