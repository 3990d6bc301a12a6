"""What a method looks at before training: pictures as they are tested."""

from __future__ import annotations

import torch
from torch import nn


def test_pictures_of_several_sizes_are_filled_up_behind_their_own_values() -> None:
    """mmseg's preprocessor stacks those of one size alone."""
    from mmseg.models import SegDataPreProcessor
    from mmseg.structures import SegDataSample

    from mmpetl.core.calibration import inputs_and_labels

    model = nn.Module()
    model.data_preprocessor = SegDataPreProcessor(mean=[10.0] * 3, std=[2.0] * 3)
    pictures = [torch.rand(3, 4, 6), torch.rand(3, 5, 2)]
    batch = {'inputs': pictures, 'data_samples': [SegDataSample(), SegDataSample()]}
    inputs, labels = inputs_and_labels(model, nn.Linear(1, 1), batch)
    assert labels is None
    assert inputs.shape == (2, 3, 5, 6)
    for found, picture in zip(inputs, pictures, strict=True):
        _, height, width = picture.shape
        torch.testing.assert_close(found[:, :height, :width], (picture - 10) / 2)
        assert found.count_nonzero() == picture.numel()
