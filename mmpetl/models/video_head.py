"""The video head of AdaptFormer: a batch norm without scale and shift, then linear.

Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual
Recognition", https://arxiv.org/abs/2205.13535, and their public video code.
"""

from __future__ import annotations

from typing import Any

from mmaction.models.heads import TimeSformerHead
from torch import Tensor, nn

from mmpetl.core import PETLError


class BatchNormHead(TimeSformerHead):
    """``W BN(x) + b``; nothing of the norm trains, its statistics are kept.

    Args:
        num_classes: Outputs.
        in_channels: Width of the feature.
        eps: Added to the variance.
        kwargs: Of mmaction's ``TimeSformerHead``.
    """

    def __init__(
        self, num_classes: int, in_channels: int, eps: float = 1e-6, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.norm = nn.BatchNorm1d(in_channels, eps=eps, affine=False)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Logits (B, num_classes) of features (B, in_channels).

        Raises:
            PETLError: It trains on one clip, of which there is no variance.
        """
        if self.training and len(x) < 2:
            raise PETLError(
                'BatchNormHead needs two clips or more in a training step, got one; '
                'raise train_dataloader.batch_size, and let drop_last=True drop a '
                'last batch of one'
            )
        return super().forward(self.norm(x), **kwargs)
