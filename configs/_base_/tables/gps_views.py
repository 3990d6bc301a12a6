# GPS chooses its weights by two views of each picture (`--contrast-aug`), however it
# trains afterwards: crop, flip, jitter of the colours in 80 %, grey in 20 %. Hook 0 is
# the one that makes the pass.
custom_hooks = {
    '0': dict(
        pipeline=[
            dict(type='LoadImageFromFile', imdecode_backend='pillow'),
            dict(
                type='RandomResizedCrop',
                scale=224,
                backend='pillow',
                interpolation='bicubic',
            ),
            dict(type='RandomFlip', prob=0.5),
            dict(
                type='RandomApply',
                transforms=[
                    # the jitter of MMCV cannot turn hues under NumPy 2
                    dict(type='NumpyToPIL', to_rgb=True),
                    dict(
                        type='torchvision/ColorJitter',
                        brightness=0.4,
                        contrast=0.4,
                        saturation=0.4,
                        hue=0.1,
                    ),
                    dict(type='PILToNumpy', to_bgr=True),
                ],
                prob=0.8,
            ),
            dict(
                type='RandomGrayscale',
                prob=0.2,
                keep_channels=True,
                channel_weights=(0.114, 0.587, 0.299),
            ),
            dict(type='PackInputs'),
        ],
    ),
}
