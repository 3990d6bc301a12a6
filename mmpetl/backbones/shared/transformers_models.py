"""What the descriptions of Hugging Face's transformers share.

Its models call their layers as ``layer(h, attention_mask, **kwargs)``, with no place
for a context. A swapped model keeps upstream's ``forward`` and lays the facts of the
pass where its swapped parts find them while it runs (:func:`running`); nothing of it
is kept on a module, so that no copy and no pickle carries it. Outside of blocks the
parts that the sites stand at are swapped too, as taps: the patch projection, what
embeds, and the final norm.
"""

from __future__ import annotations

import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin
from transformers.utils import output_capturing

from mmpetl.core import (
    FFN,
    BackboneHost,
    BlockHost,
    Context,
    PETLError,
    Role,
    Rows,
    Site,
    SiteMap,
    Stack,
    block_sites,
    patches_of,
)
from mmpetl.core.injection import record_of
from mmpetl.core.sitemap import is_below

LEAST = (5, 24)
"""First release whose names these descriptions know; they moved within 5.x."""


def check_release() -> None:
    """Refuse releases of transformers with other classes and names.

    Raises:
        PETLError: The installed release is older than :data:`LEAST`.
    """
    found = tuple(int(n) for n in transformers.__version__.split('.')[:2])
    if found < LEAST:
        least = '.'.join(map(str, LEAST))
        raise PETLError(
            f'transformers {transformers.__version__} is installed, and its models '
            f'are described as of {least}; pip install "transformers>={least}"'
        )


check_release()

PLACES = ('projection', 'embed_norm', 'embedding', 'final', 'encoder', 'vector_norm')
"""Attributes of :class:`TransformersMap` that are paths of taps."""


class _Running(threading.local):
    """The pass that this thread is in."""

    now: Pass | None = None


class Pass:
    """One forward pass of a swapped model.

    Attributes:
        model: The swapped model.
        ctx: What its deltas are handed.
        grids: Extents behind each recorded state, where they change.
        stream: What one stage hands to the next, where that is more than its output:
            the tokens behind its last block, and the same behind its norm.
        states: What upstream has recorded, of a model whose outputs are made of it.
        outs: What leaves of each state, None of one that does not.
    """

    def __init__(self, model: ModelHost) -> None:
        self.model = model
        self.ctx = model.new_context(())
        self.grids: list[tuple[int, ...]] = []
        self.stream: tuple[Tensor, Tensor] | None = None
        self.states: tuple[Tensor, ...] = ()
        self.outs: list[Tensor | None] = []

    def grid_of(self, index: int) -> tuple[int, ...]:
        """Extents of the tokens in a recorded state."""
        return self.grids[index] if self.grids else self.ctx.grid


_RUNNING = _Running()


def running() -> Pass | None:
    """The pass of the swapped model that is at work in this thread."""
    return _RUNNING.now


def _record_as(cls: type, outputs: Any) -> None:
    """Say what of a model may be recorded, which is looked up by its class's name."""
    dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(cls), outputs)


class Tap:
    """A part outside of blocks that a site stands at; alone it computes as ever."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, PreTrainedModel):
            _record_as(cls, cls._can_record_outputs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        at = running()
        if at is None:
            return super().forward(*args, **kwargs)
        return at.model.tapped(self, super().forward, at.ctx, *args, **kwargs)


class PETLConv2d(Tap, nn.Conv2d):
    """A patch projection of images."""


class PETLConv3d(Tap, nn.Conv3d):
    """A patch projection of videos."""


class PETLLayerNorm(Tap, nn.LayerNorm):
    """A norm in front of the layers, behind them, or behind the pooling."""


class PETLIdentity(Tap, nn.Identity):
    """No final norm."""


class LayerHost(BlockHost):
    """A layer that upstream's own loop calls.

    Attributes:
        free_keys: Whether keys without a bias need none, as nothing stands between them
            and the scores; rotary positions do.
    """

    gradient_checkpointing: bool
    free_keys = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # GradientCheckpointingLayer has wrapped it: that would run the layer again
        # outside of its pass, and not at all while the frozen layer is in eval mode.
        cls.forward = LayerHost.forward

    @property
    def with_cp(self) -> bool:
        """Upstream's switch; a frozen layer is in eval mode and saves memory too."""
        return self.gradient_checkpointing

    @with_cp.setter
    def with_cp(self, on: bool) -> None:
        self.gradient_checkpointing = on

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        at = running()
        if at is None:
            raise PETLError(
                'a layer of an injected model knows no grid of its own; call the model '
                'as a whole'
            )
        self.take(at.ctx, *args, **kwargs)
        y = BlockHost.forward(self, hidden_states, at.ctx)
        at.model.recorded(y, at)
        return self.returned(y)

    def context_of(self, args: tuple[Any, ...]) -> Context:
        return running().ctx

    def take(self, ctx: Context, *args: Any, **kwargs: Any) -> None:
        """Keep what the encoder hands to a layer beside the stream."""

    def returned(self, y: Tensor) -> Any:
        """What the encoder expects of its layer."""
        return y

    def attention_parts(self) -> dict[str, Any]:
        attn = self.attention_module()
        q, k, v, o = self.projections()
        if k.bias is None and self.free_keys:
            k = Rows(k.weight, (k.out_features,), call=k)
        rate = next(
            getattr(attn, name)
            for name in ('attention_dropout', 'dropout_prob', 'dropout')
            if hasattr(attn, name)
        )
        return {
            'num_heads': self.heads,
            'qkv': Stack(q, k, v),
            'proj': o,
            'dropout': rate if attn.training else 0.0,
        }

    @property
    def attention(self) -> nn.Module:
        """The module, which has the name of a method of other hosts."""
        if 'attention' in self._modules:
            return self._modules['attention']
        raise AttributeError('attention')

    def sublayers(self, x: Tensor, ctx: Context) -> Tensor:
        norm1, norm2 = self.norms()
        x = self.sublayer(1, 'attn', norm1, self.attended, x, ctx)
        return self.sublayer(2, 'ffn', norm2, self.ffn_network, x, ctx)

    def attended(self, x: Tensor, ctx: Context) -> Tensor:
        """What other hosts have as their method ``attention``."""
        return BlockHost.attention(self, x, ctx)

    def attention_module(self) -> nn.Module:
        """The module that holds the projections to queries, keys and values."""
        return self.attention

    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
        """Projections to queries, keys and values, and the output projection."""
        attn = self.attention_module()
        return attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.attention_module().num_attention_heads

    def ffn_parts(self) -> FFN:
        mlp = self.mlp
        if hasattr(mlp, 'fc1'):
            act = getattr(mlp, 'activation_fn', None) or mlp.activation
            return FFN(
                mlp.fc1,
                lambda x, _: act(x),
                mlp.fc2,
                self.drop_projection,
                by_token=True,
            )
        if hasattr(mlp, 'gate_proj'):
            fc1 = Stack(mlp.gate_proj, mlp.up_proj)
            return FFN(
                fc1, self.gate, mlp.down_proj, self.drop_projection, by_token=True
            )
        act = mlp.act_fn
        return FFN(
            mlp.up_proj,
            lambda x, _: act(x),
            mlp.down_proj,
            self.drop_projection,
            by_token=True,
        )

    def gate(self, x: Tensor, ctx: Context) -> Tensor:
        """``act(gate) * up`` of a gated feed-forward network."""
        gate, up = x.chunk(2, dim=-1)
        return self.mlp.act_fn(gate) * up

    def residual(self, branch: int, x: Tensor) -> Tensor:
        return x


class ModelHost(BackboneHost):
    """A model of transformers that runs sites around its own forward pass.

    Attributes:
        refused: Arguments that leave no grid of tokens, with what to do instead.
    """

    config: Any
    refused: dict[str, str] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, PreTrainedModel):
            return
        foreign = next(c for c in cls.__mro__[1:] if issubclass(c, PreTrainedModel))
        cls.argument_names = tuple(inspect.signature(foreign.forward).parameters)[1:]

        # Trainer reads the signature.
        @wraps(foreign.forward)
        def forward(self: ModelHost, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(self.argument_names, args, strict=False)) | kwargs
            return self.run_pass(super().forward, given)

        cls.forward = forward
        _record_as(cls, cls._can_record_outputs)

    @property
    def depth(self) -> int:
        """Number of layers; the last output is one less."""
        return self.config.num_hidden_layers

    def train(self, mode: bool = True) -> ModelHost:
        super().train(mode)
        own = {n: p for n, p in self.named_parameters() if 'petl' not in n.split('.')}
        unread = record_of(self).site_map.unread_in(self)
        if mode and all(
            p.requires_grad or any(is_below(n, prefix) for prefix in unread)
            for n, p in own.items()
        ):
            # All that a pass reads trains, so its dropout and augmentation act too.
            for path, module in self.named_modules():
                if 'petl' not in path.split('.'):
                    module.training = True
        return self

    def run_pass(self, forward: Callable[..., Any], given: dict[str, Any]) -> Any:
        """Upstream's forward pass, with a context where swapped parts find it."""
        self.check_arguments(given)
        tuples = given.pop('return_dict', None)
        if tuples is None:
            tuples = getattr(self.config, 'return_dict', True)
        outer, at = _RUNNING.now, Pass(self)
        _RUNNING.now = at
        try:
            result = forward(**given, return_dict=True)
        finally:
            _RUNNING.now = outer
        hidden = getattr(result, 'hidden_states', None)
        if hidden is not None:
            result.hidden_states = self.handed(hidden, at)
        return result if tuples else result.to_tuple()

    def handed(
        self, states: Iterable[Tensor | None], at: Pass
    ) -> tuple[Tensor | None, ...]:
        """Recorded states as they leave, None where one was not asked for."""
        return tuple(
            self.own_tokens(h, at.ctx, at.grid_of(i)) for i, h in enumerate(states)
        )

    def check_arguments(self, given: dict[str, Any]) -> None:
        """Refuse what a pass with sites cannot do.

        Raises:
            PETLError: An attention mask, recorded attention, or a mask that drops
                tokens is asked for.
        """
        for name in ('attention_mask', 'head_mask'):
            if given.get(name) is not None:
                raise PETLError(
                    f'an injected {type(self).__name__} takes no {name}; leave it out, '
                    'as images of one batch have one size'
                )
        asked = given.get('output_attentions')
        if asked is None:
            asked = getattr(self.config, 'output_attentions', False)
        if asked:
            raise PETLError(
                f'an injected {type(self).__name__} records no attentions; '
                'mmpetl.analysis.attention reads them, or call it with '
                'output_attentions=False'
            )
        for name, instead in self.refused.items():
            if given.get(name) is not None:
                raise PETLError(
                    f'an injected {type(self).__name__} takes no {name}, {instead}'
                )

    def own_tokens(
        self, x: Tensor | None, ctx: Context, grid: tuple[int, ...]
    ) -> Tensor | None:
        """A recorded stream without the tokens that deltas have added."""
        if x is None:
            return None
        own = ctx.num_prefix - ctx.num_extra
        extra = x.shape[1] - own - math.prod(grid)
        if not extra:
            return x
        return torch.cat((x[:, :own], x[:, own + extra :]), dim=1)

    def tapped(
        self,
        tap: nn.Module,
        run: Callable[..., Any],
        ctx: Context,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """One tap, run with the sites that stand at it.

        Args:
            tap: The swapped part.
            run: What upstream computes there.
            ctx: Facts of this forward pass.
            *args: What upstream hands to it.
            **kwargs: Likewise.
        """
        place = record_of(self).site_map.place_of(self, tap)
        if place == 'final':
            if record_of(self).site_map.states_of(self):  # made before, and not of this
                return run(self.own_tokens(args[0], ctx, ctx.grid))
            return self.emit(args[0], run, ctx, self.depth - 1)[1]
        if place == 'vector_norm':
            return self.norm_vector(run, args[0], ctx, self.depth)
        if place == 'embed_norm':
            return self.through('embed.norm', run, args[0], ctx)
        y = run(*args, **kwargs)
        if place == 'projection':
            return self.projected(tap, args[0], y, ctx)
        if place == 'embedding':
            return self.embedded(y, ctx)
        if place == 'encoder':
            x = y.last_hidden_state
            x = self.emit(x, None, ctx, self.depth - 1)[1]
            y.last_hidden_state = x.contiguous()
        return y

    def embedded(self, y: Any, ctx: Context) -> Any:
        """What leaves the embedding, with its site."""
        own = y.shape[1] - math.prod(ctx.grid)
        # Sizes are tensors to TorchScript's trace, and counting would write to one.
        ctx.num_prefix = int(own) if torch.jit.is_tracing() else own
        return self.after('embed', y, y, ctx)

    def recorded(self, x: Tensor, at: Pass) -> None:
        """Called with what enters the first layer, and with what leaves each."""

    def projected(
        self, projection: nn.Module, images: Tensor, y: Tensor, ctx: Context
    ) -> Tensor:
        """What leaves the patch projection, (B, C, *grid), with its site."""
        ctx.grid, ctx.images = tuple(y.shape[2:]), images
        if not self.plugged('embed.proj'):
            return y
        patches = patches_of(projection, images)
        x = self.after('embed.proj', patches, y.flatten(2).mT, ctx)
        return x.mT.unflatten(2, ctx.grid)

    def norm_tokens(
        self, x: Tensor, norm: nn.Module, ctx: Context | None = None
    ) -> Tensor:
        """The final norm on the tokens of another layer, for dense outputs.

        Args:
            x: (B, N, C), of ``hidden_states``.
            norm: The final norm, as it is in the model.
            ctx: Facts of the pass, None outside of one.
        """
        place = record_of(self).site_map.place_of(self, norm)
        index = self.depth - (place != 'vector_norm')
        call = super(Tap, norm).forward
        ctx = self.new_context(()) if ctx is None else ctx
        return self.through('out.norm', call, x, ctx, index)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if _is_saving(sys._getframe(1)):
            self.save_pretrained()
        return super().state_dict(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused: such a file would mix base and deltas under names of its own.

        Raises:
            PETLError: Always.
        """
        raise PETLError(
            'save_pretrained would mix the base and what was injected; write the delta '
            'with mmpetl.save_delta, or fold and eject it first (mmpetl.fold, '
            'mmpetl.eject)'
        )

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Refused: what is injected is no class of its own.

        Raises:
            PETLError: Always.
        """
        name = cls.__name__.removeprefix('PETL')
        raise PETLError(
            f'build the plain model with transformers.{name}.from_pretrained, then '
            'inject a method or call mmpetl.load_delta'
        )


class StatesHost(ModelHost):
    """A model whose outputs may be states that upstream has recorded.

    An output is made as its layer ends: its site reads streams that go on from there.
    It stands in the place of the state where upstream looks through all of them: in a
    ``*Backbone`` class itself, whose norm leaves alone what has been normed, or behind
    the model, in one that holds it.
    """

    def handed(
        self, states: Iterable[Tensor | None], at: Pass
    ) -> tuple[Tensor | None, ...]:
        own = at.states or [
            state if out is None else out
            for state, out in zip(states, at.outs, strict=True)
        ]
        pairs = zip(states, own, strict=True)
        return super().handed([None if h is None else state for h, state in pairs], at)

    def embedded(self, y: Tensor, ctx: Context) -> Tensor:
        y = super().embedded(y, ctx)
        self.recorded(y, running())
        return y

    def recorded(self, x: Tensor, at: Pass) -> None:
        layer, ctx, out = len(at.outs) - 1, at.ctx, None
        site_map = record_of(self).site_map
        if layer + 1 in site_map.states_of(self):
            norm = site_map.norm_at(self, layer)
            if layer >= 0:
                x = self.before('out', x, ctx, layer)
            if norm is not None:
                x = self.norm_tokens(x, norm, ctx)
            out = self.own_tokens(x, ctx, ctx.grid)
            if layer >= 0:
                out = self.after('out', x, out, ctx, layer)
        at.outs.append(out)

    def tapped(
        self,
        tap: nn.Module,
        run: Callable[..., Any],
        ctx: Context,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        at, place = running(), record_of(self).site_map.place_of(self, tap)
        if place == 'encoder':
            y = run(*args, **kwargs)
            at.states = y.hidden_states
            y.hidden_states = tuple(
                self.own_tokens(state, ctx, ctx.grid) if out is None else out
                for state, out in zip(at.states, at.outs, strict=True)
            )
            return y
        if place == 'final' and at.states:
            is_done = any(args[0] is out for out in at.outs)
            return args[0] if is_done else self.norm_tokens(args[0], tap, ctx)
        return super().tapped(tap, run, ctx, *args, **kwargs)


def _is_saving(frame: Any) -> bool:
    """Whether ``save_pretrained`` of a model around this one asks for its tensors."""
    code = inspect.unwrap(PreTrainedModel.save_pretrained).__code__
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


class TransformersMap(SiteMap):
    """Site map of a plain transformer of transformers.

    Attributes:
        layers: Path of the list of layers.
        projection: Path of the patch projection.
        embed_norm: Path of a norm inside of the embedding, empty without one.
        embedding: Path of the module that leaves what enters the first layer.
        final: Path of the norm on the tokens that leave, empty without one.
        encoder: Path of what leaves them where there is no such norm.
        vector_norm: Path of a norm behind the pooling, empty without one.
        taps: Swapped class by foreign class, of what stands at these paths.
        apart: Path prefixes of parameters that no site reaches and that only some
            outputs read, as poolers: only a method that trains all trains them.
        unread: Path prefixes of parameters that no pass reads but that of pre-training.
            They have no role, and no method selects them.
    """

    layers: str
    projection = 'embeddings.patch_embeddings.projection'
    embed_norm = ''
    embedding = 'embeddings'
    final = 'layernorm'
    encoder = ''
    vector_norm = ''
    taps: dict[type[nn.Module], type[nn.Module]]
    apart: tuple[str, ...] = ()
    unread: tuple[str, ...] = ('embeddings.mask_token',)
    positions = ('position_embeddings',)
    tokens = ('cls_token', 'register_tokens')
    scales = ('lambda1', 'lambda_1', 'lambda_2')
    absent = {'feature': 'the model hands out tokens, and heads outside of it pool'}

    def served(self) -> dict[type[nn.Module], type[nn.Module]]:
        return {self.host_block: self.swapped_block, **self.taps}

    def inner_hosts(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for place in PLACES:
            path = getattr(self, place)
            module = _below(backbone, path) if path else None
            if place == 'encoder' and self.norm_of(backbone) is not None:
                continue
            if module is not None:
                yield path, module

    def place_of(self, backbone: nn.Module, tap: nn.Module) -> str:
        """Which of :data:`PLACES` a tap stands at."""
        for place in PLACES:
            path = getattr(self, place)
            if path and _below(backbone, path) is tap:
                return place
        return ''

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        for i, block in enumerate(backbone.get_submodule(self.layers)):
            yield f'{self.layers}.{i}', block

    def norm_of(self, backbone: nn.Module) -> nn.Module | None:
        """The norm on the tokens that leave."""
        if states := self.states_of(backbone):
            norms = (self.norm_at(backbone, i - 1) for i in states)
            return next((norm for norm in norms if norm is not None), None)
        norm = _below(backbone, self.final) if self.final else None
        return norm if isinstance(norm, nn.LayerNorm) else None

    def core(self, backbone: nn.Module) -> nn.Module:
        inner = super().core(backbone)
        if inner is not backbone:
            inner.states_read = self.read_by(backbone)
        return inner

    def read_by(self, holder: nn.Module) -> list[int]:
        """Recorded states that a class around the model reads, none of most."""
        return selected_states(holder) if isinstance(holder, BackboneMixin) else []

    def states_of(self, backbone: nn.Module) -> list[int]:
        """Recorded states that leave in place of the last output, by a class around it.

        The first is what enters the first layer.
        """
        return vars(backbone).get('states_read', [])

    def leaving(self, backbone: nn.Module) -> list[int]:
        """Layers, or stages, whose output leaves."""
        if states := self.states_of(backbone):
            return [i - 1 for i in states if i]
        return [len(backbone.get_submodule(self.layers)) - 1]

    def norm_at(self, backbone: nn.Module, layer: int) -> nn.Module | None:
        """The norm on a state that leaves, by its layer, -1 for what enters the first.

        None: what holds the model norms it, if anything does.
        """
        return None

    def unread_in(self, backbone: nn.Module) -> tuple[str, ...]:
        """:attr:`unread` of this very instance, with a norm that no output has seen."""
        if self.states_of(backbone) and self.norm_of(backbone) is None:
            return (*self.unread, self.final)
        return self.unread

    def parts_of(self, block: nn.Module) -> LayerHost:
        """A block as its swapped class sees it, before or after the swap."""
        view = object.__new__(self.served().get(type(block), type(block)))
        view.__dict__ = block.__dict__
        return view

    def sites(self, backbone: nn.Module) -> list[Site]:
        projection = backbone.get_submodule(self.projection)
        d = projection.out_channels
        patch = projection.in_channels * math.prod(projection.kernel_size)
        blocks = list(self.blocks(backbone))
        depth = len(blocks)
        facts = {'num_blocks': depth, 'embed_dims': d, 'patch_dims': patch, 'stage': 0}
        facts['timed'] = len(projection.kernel_size) == 3
        grid = {**facts, 'has_grid': True}
        sites = [Site('embed.proj', '', patch, d, **grid)]
        sites.append(Site('embed', '', d, d, **grid))
        for i, (path, block) in enumerate(blocks):
            view = self.parts_of(block)
            fc1, fc2 = view.ffn_parts().fc1, view.ffn_parts().fc2
            q = view.projections()[0]
            sites += block_sites(
                path,
                d,
                fc2.in_features,
                attn_dims=q.out_features,
                gated=isinstance(fc1, Stack),
                block=i,
                num_heads=view.heads,
                **facts,
            )
        if self.norm_of(backbone) is not None:
            sites.append(Site('out.norm', '', d, d, index=depth - 1, **grid))
        for i in self.leaving(backbone):
            sites.append(Site('out', '', d, d, index=i, **grid))
        if self.vector_norm and _below(backbone, self.vector_norm) is not None:
            sites.append(Site('out.norm', '', d, d, index=depth, **facts))
        return sites

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        depth = len(backbone.get_submodule(self.layers))
        modules = {
            'embed_proj': backbone.get_submodule(self.projection),
            f'out_norm_{depth - 1}': self.norm_of(backbone),
        }
        if self.vector_norm:
            modules[f'out_norm_{depth}'] = _below(backbone, self.vector_norm)
        return {key: module for key, module in modules.items() if module is not None}

    def roles(self, backbone: nn.Module) -> list[Role]:
        def below(name: str, prefixes: tuple[str, ...]) -> bool:
            return any(is_below(name, prefix) for prefix in prefixes)

        return [
            replace(role, kind='other', part='', norm='')
            if below(role.name, self.apart) and role.place != 'out'
            else role
            for role in super().roles(backbone)
            if not below(role.name, self.unread_in(backbone))
        ]


class StatesMap(TransformersMap):
    """Site map of a ``*Backbone`` class; one site of its norm serves every output.

    Attributes:
        norms_last: Whether the state behind the last layer is normed whatever
            ``apply_layernorm`` says.
    """

    holders: dict[type[nn.Module], str] = {}
    norms_last = False

    def states_of(self, backbone: nn.Module) -> list[int]:
        return selected_states(backbone)

    def norm_at(self, backbone: nn.Module, layer: int) -> nn.Module | None:
        last = self.norms_last and layer == len(backbone.stage_names) - 2
        read = last or backbone.config.apply_layernorm
        return backbone.get_submodule(self.final) if read else None

    def inner_hosts(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        yield from super().inner_hosts(backbone)
        if self.norm_of(backbone) is not None:
            yield self.encoder, backbone.get_submodule(self.encoder)


def selected_states(backbone: BackboneMixin) -> list[int]:
    """Places of ``out_features`` among the states of a ``*Backbone`` class."""
    names = backbone.stage_names
    return [i for i, name in enumerate(names) if name in backbone.out_features]


def _below(backbone: nn.Module, path: str) -> nn.Module | None:
    """What stands at a path, None where nothing does."""
    for name in path.split('.'):
        backbone = getattr(backbone, name, None)
        if backbone is None:
            return None
    return backbone
