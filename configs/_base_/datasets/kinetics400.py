# Kinetics-400: about 240,000 training and 20,000 validation videos. Copies differ, for
# clips disappear: state the counts of yours with a result.
_base_ = './video.py'

_root = '{{$MMPETL_DATA:data}}/kinetics400'
_val = dict(
    dataset=dict(
        ann_file=f'{_root}/kinetics400_val_list_videos.txt',
        data_prefix=dict(video=f'{_root}/videos_val'),
    )
)
train_dataloader = dict(
    dataset=dict(
        ann_file=f'{_root}/kinetics400_train_list_videos.txt',
        data_prefix=dict(video=f'{_root}/videos_train'),
    )
)
val_dataloader = _val
test_dataloader = _val
del _root, _val
