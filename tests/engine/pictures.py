"""A small backbone and a small data set for runs."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.registry import DATASETS

BACKBONE = {
    'type': 'mmpretrain.VisionTransformer',
    'arch': {
        'embed_dims': 32,
        'num_layers': 2,
        'num_heads': 4,
        'feedforward_channels': 64,
    },
    'img_size': 32,
    'patch_size': 8,
    'out_type': 'cls_token',
}


@DATASETS.register_module(name='RandomPictures')
class Pictures(torch.utils.data.Dataset):
    """40 pictures, flipped at random, so that numpy's generator matters."""

    metainfo = {'classes': [str(i) for i in range(10)]}

    def __init__(self, spoil: int | None = None) -> None:
        rng = np.random.RandomState(0)
        self.pictures = rng.randint(0, 255, (40, 3, 32, 32)).astype('float32')
        self.labels = rng.randint(0, 10, 40)
        if spoil is not None:
            self.pictures[spoil] = np.nan

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict:
        from mmpretrain.structures import DataSample

        picture = self.pictures[index].copy()
        if np.random.rand() < 0.5:
            picture = picture[:, :, ::-1].copy()
        sample = DataSample().set_gt_label(int(self.labels[index]))
        sample.set_metainfo({'img_path': f'picture_{index}.jpg'})
        return {'inputs': torch.from_numpy(picture), 'data_samples': sample}
