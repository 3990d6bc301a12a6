"""Leaves: single layers of any model, swapped so that they run deltas.

The class of a leaf (a Linear, a convolution, a norm, a MultiheadAttention) is changed
to a subclass of it that has the same name and runs its site around the layer's own
forward pass. Parameters, keys and ``isinstance`` stay, and there is no hook. The
classes are made when they are first needed and found again by name, so that a model
can be pickled and read in another process.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import is_parametrized

from mmpetl.core.affine import Affine
from mmpetl.core.attention import softmax_attention, split_heads
from mmpetl.core.context import Context
from mmpetl.core.errors import PETLError
from mmpetl.core.host import Host, KeepsBase
from mmpetl.core.sitemap import CONVOLUTIONS, is_norm
from mmpetl.core.stack import is_plain

STANDARDISING = ('mmcv.cnn.bricks.conv_ws', 'timm.layers.std_conv')
"""Modules whose convolutions standardise their weight in each pass."""


class LeafHost(Host):
    """A layer that runs its own site."""

    def affine(self, name: str, kind: str) -> Affine | None:
        return layer_affine(name, self, kind)


class LinearLeaf(LeafHost):
    """A Linear: x (..., in), y (..., out)."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(*args, **kwargs)
        if 'petl' not in self._modules:
            return y
        return self.after('layer.linear', _first(args, kwargs), y, Context(()))


class PointwiseLeaf(LeafHost):
    """A convolution that sees one place at a time: a Linear with channels last."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        if 'petl' not in self._modules:
            return y
        axis = -1 - len(self.kernel_size)
        for i, step in enumerate(self.stride):
            if step > 1:
                along = [slice(None)] * (input.ndim + axis + 1 + i)
                input = input[(*along, slice(None, None, step))]
        x, y = input.movedim(axis, -1), y.movedim(axis, -1)
        return self.after('layer.linear', x, y, Context(())).movedim(-1, axis)


class ConvLeaf(LeafHost):
    """A convolution over several places, with one group."""

    kind = 'layer.conv'

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input)
        if 'petl' not in self._modules:
            return y
        axis = -1 - len(self.kernel_size)
        if pads_itself(self):
            mode = 'constant' if self.padding_mode == 'zeros' else self.padding_mode
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=mode)
        y = self.after(self.kind, input, y.movedim(axis, -1), Context(()))
        return y.movedim(-1, axis)


class GroupedLeaf(ConvLeaf):
    """A depth-wise or grouped convolution."""

    kind = 'layer.dwconv'


class NormLeaf(LeafHost):
    """A norm with its channels last."""

    channels = -1

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(*args, **kwargs)
        if 'petl' not in self._modules:
            return y
        x, axis = _first(args, kwargs), self.channels
        # mmpretrain's LayerNorm2d is told the layout in each call.
        if 'channel_last' in (*args[1:2], kwargs.get('data_format')):
            axis = -1
        x, y = x.movedim(axis, -1), y.movedim(axis, -1)
        return self.after('layer.norm', x, y, Context(())).movedim(-1, axis)


class MapNormLeaf(NormLeaf):
    """A norm whose channels are the second axis."""

    channels = 1


class AttentionLeaf(LeafHost):
    """``nn.MultiheadAttention``, written with the sites of its projections."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if 'petl' not in self._modules:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        if query.is_nested:
            raise PETLError(
                'a MultiheadAttention with deltas takes no nested tensors; call its '
                'encoder with enable_nested_tensor=False'
            )
        lone = query.ndim == 2
        x = query, key, value
        same = _is_one(query, key) and _is_one(key, value)
        if lone:
            x = tuple(t.unsqueeze(0) for t in x)
        elif not self.batch_first:
            x = tuple(t.transpose(0, 1) for t in x)
        ctx = Context(())
        q, k, v = self._projected(x, same, ctx)
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            scores = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(scores, dropout)
            o = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        elif mask is None:
            o = softmax_attention(q, k, v, dropout=dropout)
        else:
            o = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout)
        o = self.before('attn.proj', o.transpose(1, 2).flatten(2), ctx)
        out = self.out_proj
        y = F.linear(o, out.weight, out.bias)
        y = self.after('attn.proj', o, y, ctx)
        if lone:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _projected(
        self, x: tuple[Tensor, ...], same: bool, ctx: Context
    ) -> list[Tensor]:
        """Queries, keys and values, each (B, heads, N, head_dims)."""
        bias = self.in_proj_bias
        fused = self.plugged('attn.qkv')
        if fused and not same:
            raise PETLError(
                'this MultiheadAttention is called with keys or values of their own, '
                'so nothing can act at attn.qkv; take attn.q, attn.k or attn.v'
            )
        if fused:
            x = (self.before('attn.qkv', x[0], ctx),) * 3
        if same:
            parts = F.linear(x[0], self.in_proj_weight, bias).chunk(3, dim=-1)
        else:
            rows = self.in_proj_weight.chunk(3)
            shifts = (None,) * 3 if bias is None else bias.chunk(3)
            parts = [F.linear(*part) for part in zip(x, rows, shifts, strict=True)]
        kinds = ('attn.q', 'attn.k', 'attn.v')
        parts = [
            self.after(kind, source, part, ctx)
            for kind, source, part in zip(kinds, x, parts, strict=True)
        ]
        if fused:
            y = torch.cat(tuple(parts), dim=-1)
            parts = self.after('attn.qkv', x[0], y, ctx).chunk(3, dim=-1)
        return [split_heads(part, self.num_heads) for part in parts]

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, mask: Tensor | None
    ) -> Tensor | None:
        """What is added to the scores, to be broadcast to (B, heads, Nq, Nk)."""
        total = None
        for given, is_padding in ((mask, False), (padding, True)):
            if given is None:
                continue
            if given.dtype == torch.bool:
                zeros = torch.zeros_like(given, dtype=q.dtype)
                given = zeros.masked_fill(given, -torch.inf)
            if is_padding:
                given = given.view(-1, 1, 1, k.shape[2])
            elif given.ndim == 3:
                given = given.unflatten(0, (-1, self.num_heads))
            given = given.to(q.dtype)
            total = given if total is None else total + given
        return total


class PlaceLeaf(LeafHost):
    """A module that stands for a place inside of a block, channels last."""

    by_map = False

    def affine(self, name: str, kind: str) -> Affine | None:
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        petl = self._modules.get('petl')
        if petl is None:
            return super().forward(*args, **kwargs)
        x, *rest = args or kwargs.values()
        tokens, ctx = self._tokens(x), Context(tuple(self._grid(x)))
        kinds = list(petl._modules)  # keys of kinds find plugs as kinds do
        changed = tokens
        for kind in kinds:
            changed = self.before(kind, changed, ctx)
        if changed is not tokens:
            x = self._restored(changed, x)
        if args:
            y = super().forward(x, *rest, **kwargs)
        else:
            y = super().forward(**{**kwargs, next(iter(kwargs)): x})
        out = self._tokens(y)
        for kind in kinds:
            out = self.after(kind, changed, out, ctx)
        return self._restored(out, y)

    def _grid(self, x: Tensor) -> torch.Size:
        if x.ndim == 3:
            return x.shape[:0]
        return x.shape[2:] if self.by_map else x.shape[1:-1]

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, N, C), whatever the layout."""
        return x.flatten(2).transpose(1, 2) if self.by_map else x.flatten(1, -2)

    def _restored(self, tokens: Tensor, like: Tensor) -> Tensor:
        tokens = tokens.transpose(1, 2) if self.by_map else tokens
        return tokens.reshape(like.shape)


class MapPlaceLeaf(PlaceLeaf):
    """A place whose channels are the second axis."""

    by_map = True


class PlainPass:
    """Mixin of a TransformerEncoderLayer with leaves.

    In eval mode its native kernel reads the weights of the layers inside of it and
    calls none of them; it is only taken where this attribute is true.
    """

    activation_relu_or_gelu = property(lambda self: 0, lambda self, value: None)


class PlainStack:
    """Mixin of a TransformerEncoder with leaves: no nested tensors, as above."""

    use_nested_tensor = property(lambda self: False, lambda self, value: None)


class LeafRoot(KeepsBase):
    """A model that no file describes; its forward pass is its own."""


class StackRoot(PlainStack, LeafRoot):
    """A TransformerEncoder that is the model itself."""


class LayerRoot(PlainPass, LeafRoot):
    """A TransformerEncoderLayer that is the model itself."""


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What enters a layer, however it is named."""
    return args[0] if args else next(iter(kwargs.values()))


def _is_one(a: Tensor, b: Tensor) -> bool:
    """Whether two arguments are one tensor; mmcv transposes it once for each."""
    if a is b:
        return True
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    alike = a.shape == b.shape and a.stride() == b.stride()
    return alike and a.data_ptr() == b.data_ptr()


def pads_itself(conv: nn.Module) -> bool:
    """Whether a convolution pads by words or with other values than zeros."""
    return isinstance(conv.padding, str) or conv.padding_mode != 'zeros'


# --------------------------------------------------------------------- classes


def foreign_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module has without a swap."""
    return getattr(type(module), '_foreign_class', type(module))


def leaf_of(module: nn.Module) -> type[LeafHost] | str:
    """What runs the site of a layer, or in words why nothing does."""
    cls = foreign_class(module)
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module)
    if isinstance(module, nn.Linear):
        return LinearLeaf
    if isinstance(module, CONVOLUTIONS):
        if module.transposed:
            return 'a transposed convolution'
        if not is_plain(cls) and not _standardises(cls):
            return f'{cls.__name__} has a forward pass of its own'
        if module.groups > 1:
            return GroupedLeaf
        alone = set(module.kernel_size) == {1} and not pads_itself(module)
        return PointwiseLeaf if alone and not any(module.padding) else ConvLeaf
    if is_norm(module) and not any(n != 'petl' for n in module._modules):
        weight = module._parameters.get('weight')
        if weight is None or weight.ndim != 1:
            return 'a norm without one scale per channel'
        by_map = isinstance(module, _NormBase | nn.GroupNorm)
        return MapNormLeaf if by_map or '2d' in cls.__name__ else NormLeaf
    return ''


def _attention(module: nn.MultiheadAttention) -> type[LeafHost] | str:
    if not is_plain(foreign_class(module)):
        return f'{foreign_class(module).__name__} has a forward pass of its own'
    if not module._qkv_same_embed_dim:
        return 'keys and values have widths of their own'
    if module.bias_k is not None or module.add_zero_attn:
        return 'a key and a value are added to those of the input'
    return AttentionLeaf


def _standardises(cls: type[nn.Module]) -> bool:
    """Whether a convolution is a plain one of its standardised weight.

    A site takes what enters and what leaves it, and nothing can be folded into it.
    """
    owner = next(c for c in cls.__mro__ if 'forward' in c.__dict__)
    pads = owner.__name__.endswith('Same')
    return owner.__module__ in STANDARDISING and not pads


def layer_affine(name: str, module: nn.Module, kind: str) -> Affine:
    """The map behind a site of a layer, swapped or not.

    Args:
        name: What messages call it.
        module: The layer.
        kind: Of a ``nn.MultiheadAttention``, which of its projections.

    Raises:
        PETLError: The layer computes something else than its weight and bias say.
    """
    cls = foreign_class(module)
    if not is_plain(cls):
        raise PETLError(
            f'{name.rpartition(":")[0] or name} is a {cls.__name__} with a forward '
            'pass of its own, so nothing can be read from its weight or folded into it'
        )
    if not isinstance(module, nn.MultiheadAttention):
        eps = getattr(module, 'eps', None)
        return Affine.of(name, module.weight, getattr(module, 'bias', None), eps)
    if kind == 'attn.proj':
        return Affine.of(name, module.out_proj.weight, module.out_proj.bias)
    qkv = Affine.of(name, module.in_proj_weight, module.in_proj_bias)
    if kind == 'attn.qkv':
        return qkv
    i, width = 'qkv'.index(kind[-1]), module.embed_dim
    return qkv.rows(name, i * width, (i + 1) * width)


def check_weights(path: str, module: nn.Module) -> None:
    """Refuse a layer whose weight is computed in each pass.

    Raises:
        PETLError: It is under ``torch.nn.utils.parametrize`` or ``weight_norm``.
    """
    for name, part in module.named_modules(prefix=path):
        computed = {
            key.rpartition('_')[0]
            for key in part._parameters
            if key.endswith(('_g', '_v', '_orig'))
        } - set(part._parameters)
        if is_parametrized(part) or 'weight' in computed:
            raise PETLError(
                f'the weight of {name} is computed in every pass '
                '(torch.nn.utils.parametrize, weight_norm or spectral_norm); call '
                'remove_parametrizations or remove_weight_norm, and inject then'
            )


_MIXINS: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        LinearLeaf,
        PointwiseLeaf,
        ConvLeaf,
        GroupedLeaf,
        NormLeaf,
        MapNormLeaf,
        AttentionLeaf,
        PlaceLeaf,
        MapPlaceLeaf,
        PlainPass,
        PlainStack,
        LeafRoot,
        StackRoot,
        LayerRoot,
    )
}


@cache
def swapped_class(mixin: type, cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a foreign class that runs sites.

    A layer keeps its class's name; a whole model is called ``PETL`` and that name, as
    described backbones are, since code of other libraries reads class names.
    """
    name = f'PETL{cls.__name__}' if issubclass(mixin, KeepsBase) else cls.__name__
    # No dots, so that pickle asks this module for it as one name (`__getattr__`).
    home = f'{mixin.__name__}@{cls.__module__}@{cls.__qualname__}'.replace('.', ':')
    space = {
        '__module__': __name__,
        '__qualname__': home,
        '__doc__': cls.__doc__,
        '_foreign_class': cls,
    }
    if issubclass(cls, nn.Sequential):
        space |= {'__iter__': _parts, '__len__': _count}
    return type(name, (mixin, cls), space)


def _parts(self: nn.Sequential) -> Iterator[nn.Module]:
    """What a Sequential runs, which deltas are no part of."""
    return (part for name, part in self._modules.items() if name != 'petl')


def _count(self: nn.Sequential) -> int:
    return len(self._modules) - ('petl' in self._modules)


def __getattr__(name: str) -> Any:
    """A swapped class by the name that pickle has written down."""
    mixin, _, home = name.partition('@')
    if mixin not in _MIXINS or '@' not in home:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, _, path = home.replace(':', '.').partition('@')
    found: Any = importlib.import_module(module)
    for part in path.split('.'):
        found = getattr(found, part)
    return swapped_class(_MIXINS[mixin], found)


def swap_leaves(model: nn.Module, places: Mapping[str, bool]) -> None:
    """Swap the layers and places that hold deltas, and no others.

    Args:
        model: The whole model; its own class is left alone.
        places: Whether channels are the second axis, by path of each named place.
    """
    placed = {id(model.get_submodule(path)): first for path, first in places.items()}
    parts = [m for m in model.modules() if m is not model]
    holding = {id(m) for m in parts if 'petl' in m._modules}
    for module in parts:
        cls, mixin = foreign_class(module), None
        if id(module) in holding:
            mixin = leaf_of(module)
            if id(module) in placed:
                mixin = MapPlaceLeaf if placed[id(module)] else PlaceLeaf
        elif isinstance(module, nn.TransformerEncoderLayer):
            mixin = PlainPass if _any(module, holding) else None
        elif isinstance(module, nn.TransformerEncoder):
            mixin = PlainStack if _any(module, holding) else None
        if isinstance(mixin, type):
            cls = swapped_class(mixin, cls)
        if type(module) is not cls:
            module.__class__ = cls


def swap_root(model: nn.Module) -> None:
    """Swap the class of a whole model."""
    cls: type = LeafRoot
    if isinstance(model, nn.TransformerEncoder):
        cls = StackRoot
    elif isinstance(model, nn.TransformerEncoderLayer):
        cls = LayerRoot
    model.__class__ = swapped_class(cls, foreign_class(model))


def unswap(modules: Iterable[nn.Module]) -> None:
    """Give modules the classes back that they had."""
    for module in modules:
        if type(module) is not foreign_class(module):
            module.__class__ = foreign_class(module)


def _any(module: nn.Module, holding: set[int]) -> bool:
    return any(id(part) in holding for part in module.modules())
