# HMDB51, split 1: 3,570 training and 1,530 test videos. Splits 2 and 3 by their lists.
_base_ = './video.py'

_root = '{{$MMPETL_DATA:data}}/hmdb51'
_val = dict(
    dataset=dict(
        ann_file=f'{_root}/hmdb51_val_split_1_videos.txt',
        data_prefix=dict(video=f'{_root}/videos'),
    )
)
train_dataloader = dict(
    dataset=dict(
        ann_file=f'{_root}/hmdb51_train_split_1_videos.txt',
        data_prefix=dict(video=f'{_root}/videos'),
    )
)
val_dataloader = _val
test_dataloader = _val
del _root, _val
