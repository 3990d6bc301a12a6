"""What the pyramids of OpenMMLab share: mmcv's attention with fewer keys, its FFNs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmcv.cnn.bricks.wrappers import Conv2d
from torch import Tensor, nn

from mmpetl.core import (
    FFN,
    Context,
    PETLError,
    PyramidSiteMap,
    ReducedKeysHost,
    Rows,
    Stack,
    on_maps,
)

CONVOLUTIONS = (nn.Conv2d, Conv2d)


class MMReducedKeys(ReducedKeysHost):
    """A block with mmcv's ``MultiheadAttention`` at ``attn``, and a convolution there.

    Keys and values come from ``attn.norm(attn.sr(x))``; one packed weight holds the
    rows of all three.
    """

    def key_reduction(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        attn = self.attn
        return (attn.sr, attn.norm) if attn.sr_ratio > 1 else None

    def attention_parts(self) -> dict[str, Any]:
        mha = self.attn.attn
        sizes = (mha.embed_dim,) * 3
        return {
            'num_heads': mha.num_heads,
            'qkv': Stack(Rows(mha.in_proj_weight, mha.in_proj_bias), sizes=sizes),
            'proj': mha.out_proj,
            'dropout': mha.dropout if mha.training else 0.0,
            'kv_source': self.kv_source(),
        }

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.attn.proj_drop(x)


class MMConvFFN(ReducedKeysHost):
    """A block whose ``ffn`` is two 1x1 convolutions, one of 3x3 between them or not."""

    def ffn_parts(self) -> FFN:
        fc1, *between, fc2, behind = self.ffn.layers

        def inside(x: Tensor, ctx: Context) -> Tensor:
            *convs, act, drop = between
            for conv in convs:
                x = on_maps(conv, x, ctx)
            return drop(act(x))

        return FFN(Rows.of(fc1), inside, Rows.of(fc2), behind)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return (self.attn if branch == 1 else self.ffn).dropout_layer(x)


class MMPyramidMap(PyramidSiteMap):
    """Site map of such a pyramid."""

    convolutions = CONVOLUTIONS
    weights = ('weight', 'in_proj_weight')
    biases = ('bias', 'in_proj_bias')

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        return {
            'mlp_dims': block.ffn.feedforward_channels,
            'num_heads': block.attn.num_heads,
            'reduced_keys': True,
        }

    def check_ffn(self, path: str, ffn: nn.Module) -> None:
        """Refuse mmcv's FFN with more than two linear layers, or a shortcut of its own.

        Args:
            path: Where it is.
            ffn: An mmcv FFN.
        """
        if ffn.num_fcs != 2 or ffn.add_identity:
            raise PETLError(
                f'{path} has {ffn.num_fcs} linear layers and add_identity='
                f'{ffn.add_identity}; the site map knows 2 and False'
            )
