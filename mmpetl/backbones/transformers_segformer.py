"""Sites of transformers' SegformerModel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.models.segformer.configuration_segformer import SegformerConfig
from transformers.models.segformer.modeling_segformer import (
    SegformerAttention,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerLayer,
    SegformerMixMLP,
    SegformerModel,
    SegformerStage,
)

from mmpetl.backbones.shared.transformers_models import (
    LayerHost,
    ModelHost,
    Pass,
    TransformersMap,
    running,
)
from mmpetl.core import (
    FFN,
    Context,
    PETLError,
    PyramidBackboneHost,
    PyramidSiteMap,
    ReducedKeysHost,
    Stage,
    on_maps,
    without_extra,
)
from mmpetl.registry import BACKBONES


def stages_of(backbone: SegformerModel) -> list[Stage]:
    """The stages; each holds patch embedding, blocks and norm."""
    return [
        Stage(
            f'stages.{i}.blocks',
            list(enumerate(stage.blocks)),
            stage.patch_embeddings.proj,
            stage.patch_embeddings.layer_norm,
            stage.layer_norm,
        )
        for i, stage in enumerate(backbone.stages)
    ]


def outputs_of(backbone: SegformerModel) -> Sequence[int]:
    """Stages that are read: those of ``out_indices`` where it is set, else all."""
    return vars(backbone).get('out_indices', range(len(backbone.stages)))


class PETLSegformerLayer(LayerHost, ReducedKeysHost, SegformerLayer):
    """A layer that runs sites."""

    def norms(self) -> tuple[nn.Module, nn.Module]:
        return self.layernorm_before, self.layernorm_after

    def key_reduction(self) -> tuple[nn.Module, Callable[[Tensor], Tensor]] | None:
        attn = self.attention_module()
        if attn.sequence_reduction_ratio <= 1:
            return None
        reduction = attn.sequence_reduction
        return reduction.sequence_reduction, reduction.layer_norm

    def attention_parts(self) -> dict[str, Any]:
        return super().attention_parts() | {'kv_source': self.kv_source()}

    def drop_projection(self, x: Tensor) -> Tensor:
        return self.hidden_dropout(x)

    def ffn_parts(self) -> FFN:
        mlp = self.mlp

        def between(x: Tensor, ctx: Context) -> Tensor:
            x = on_maps(mlp.dwconv.dwconv, x, ctx)
            return mlp.dropout(mlp.activation_fn(x))

        return FFN(mlp.fc1, between, mlp.fc2, mlp.dropout)

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return self.drop_path(x)


class PETLSegformerStage(SegformerStage):
    """A stage that runs the sites of its patch embedding and of its norm."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        at = running()
        if at is None:
            raise PETLError(
                'a stage of an injected model knows nothing of the one in front; call '
                'the model as a whole'
            )
        return at.model.run_stage(self, hidden_states, at)


class PETLSegformerModel(PyramidBackboneHost, ModelHost, SegformerModel):
    """A SegformerModel that runs sites.

    Upstream hands maps from stage to stage. Here they are what is recorded and leaves;
    the stream itself, extra tokens and all, is kept beside them in the pass.
    """

    def pyramid(self) -> list[Stage]:
        return stages_of(self)

    def leaves(self, index: int) -> bool:
        return index in outputs_of(self)

    def run_stage(self, module: SegformerStage, x: Tensor, at: Pass) -> Tensor:
        """One stage.

        Args:
            module: The stage.
            x: Images in front of the first one; of no account to later ones, which take
                up the stream.
            at: The pass.

        Returns:
            (B, C, H, W), or (B, N, C) of a last stage whose output is not reshaped.
        """
        stages = self.pyramid()
        i = next(i for i, stage in enumerate(self.stages) if stage is module)
        if i == 0:
            x, at.ctx = self.embedded(stages[0], x)
        else:
            x = self.open_stage(i - 1, stages, *at.stream, at.ctx)
        ctx = at.ctx
        for _, block in stages[i].blocks:
            x = block(x, *ctx.grid)
        normed = self.closed(i, stages[i], x, ctx)
        at.stream = x, normed
        if self.leaves(i):
            y = self.output(i, stages[i], x, normed, ctx)
        else:
            y = without_extra(normed, ctx)
        return self.maps(y, ctx.grid) if module.reshape else y

    def own_tokens(self, x: Tensor, ctx: Context, grid: tuple[int, ...]) -> Tensor:
        """A recorded output, which holds no extra tokens."""
        return x


@BACKBONES.register_module()
class TransformersSegformer(PyramidSiteMap, TransformersMap):
    """``transformers.SegformerModel``."""

    host = SegformerModel
    host_block = SegformerLayer
    swapped = PETLSegformerModel
    swapped_block = PETLSegformerLayer
    holders = {
        SegformerForImageClassification: 'segformer',
        SegformerForSemanticSegmentation: 'segformer',
    }
    parts = {'attention': (SegformerAttention,), 'mlp': (SegformerMixMLP,)}
    taps = {SegformerStage: PETLSegformerStage}
    unread = ()

    def example(self) -> nn.Module:
        return SegformerModel(
            SegformerConfig(
                depths=[3, 6, 40, 3],
                hidden_sizes=[64, 128, 320, 512],
                num_attention_heads=[1, 2, 5, 8],
            )
        )

    def pyramid(self, backbone: nn.Module) -> list[Stage]:
        return stages_of(backbone)

    def inner_hosts(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, stage in enumerate(backbone.stages):
            yield f'stages.{i}', stage

    def leaving(self, backbone: nn.Module) -> set[int]:
        return set(outputs_of(backbone))

    def block_facts(self, block: nn.Module) -> dict[str, Any]:
        attn = block._modules['attention']
        return {
            'mlp_dims': block.mlp.fc1.out_features,
            'attn_dims': attn.q_proj.out_features,
            'num_heads': attn.num_attention_heads,
            'reduced_keys': True,
        }
