# Something-Something V2: 168,913 training videos, 24,777 validation videos, which
# papers call test because the test labels are not public.
_base_ = './video.py'

_root = '{{$MMPETL_DATA:data}}/ssv2'
_val = dict(
    dataset=dict(
        ann_file=f'{_root}/sthv2_val_list_videos.txt',
        data_prefix=dict(video=f'{_root}/videos'),
    )
)
train_dataloader = dict(
    dataset=dict(
        ann_file=f'{_root}/sthv2_train_list_videos.txt',
        data_prefix=dict(video=f'{_root}/videos'),
    )
)
val_dataloader = _val
test_dataloader = _val
del _root, _val
