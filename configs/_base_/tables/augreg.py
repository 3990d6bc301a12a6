# SSF, HST and GPS: timm's pretrained vit_base_patch16_224_in21k, which is the AugReg
# release, and its loader, which drops the last partial batch.
_base_ = './timm.py'

model = dict(
    backbone=dict(
        checkpoint=(
            '{{$MMPETL_WEIGHTS:checkpoints}}/'
            'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz'
        ),
    ),
)
train_dataloader = dict(drop_last=True)
