"""Sums of deltas with a backward pass of their own: the same numbers, for less.

Each function states its formula in plain operations, and these run wherever
:func:`lean` says no: in a trace, under autocast, where dtypes differ. Elsewhere a
backward pass that is written down keeps less and computes less than autograd's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from mmpetl.core.context import (
    Context,
    Made,
    autocasts,
    has_values,
    records_gradients,
)
from mmpetl.core.dropout import dropped, only_those


def lean(*tensors: Tensor | None) -> bool:
    """Whether a function with its own backward pass may run on these."""
    given = [t for t in tensors if t is not None]
    first = given[0]
    return (
        records_gradients()
        and first.is_floating_point()
        and all(t.dtype == first.dtype for t in given)
        and not autocasts(first)
    )


# ----------------------------------------------------------------- low-rank sums


def product(
    x: Tensor, weight: Tensor, ctx: Context, drop: nn.Dropout | None = None
) -> Tensor:
    """``drop(x) W^T``, for each part of x that is as wide as W.

    Deltas at queries, keys and values that share x and W share the product, but where
    each drops others. What the trunk can compute again (:attr:`Context.made`) is not
    kept for the backward pass; of a dropout it is which elements stay.

    Args:
        x: (..., parts * in_dims).
        weight: (rank, in_dims).
        ctx: Facts of this forward pass.
        drop: Dropout on x.

    Returns:
        (..., parts * rank).
    """
    if drop is not None and drop.training and drop.p:
        return _dropped(x, weight, ctx, drop)
    for known, by, found in ctx.products or ():
        if known is x and by is weight:
            return found
    made = ctx.made_of(x)
    if made is not None and lean(x, weight, *made.sources):
        h = ProductAgain.apply(x, weight, made.compute, *made.sources)
    else:
        h = _product(x, weight)
    if ctx.products is not None:
        ctx.products.append((x, weight, h))
    return h


def _product(x: Tensor, weight: Tensor) -> Tensor:
    if x.shape[-1] == weight.shape[1]:
        return F.linear(x, weight)
    return F.linear(x.unflatten(-1, (-1, weight.shape[1])), weight).flatten(-2)


def _dropped(x: Tensor, weight: Tensor, ctx: Context, drop: nn.Dropout) -> Tensor:
    if drop.p == 1 or not lean(x, weight):
        return _product(drop(x), weight)
    compute, sources = _again(x, ctx.made_of(x))
    if not weight.requires_grad:
        sources = ()
    return DroppedProduct.apply(x, weight, drop.p, compute, *sources)


def _again(
    x: Tensor, made: Made | None
) -> tuple[Callable[..., Tensor] | None, tuple[Tensor, ...]]:
    """How to come by x in a backward pass, and what to keep for that; None: x."""
    if made is not None and lean(x, *made.sources):
        return made.compute, made.sources
    return None, (x,)


class DroppedProduct(Function):
    """``drop(x) W^T`` that keeps a byte for each element, and x or what it is made of.

    The elements are those that :func:`mmpetl.core.dropout.dropout` would drop.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        rate: float,
        compute: Callable[..., Tensor] | None,
        *sources: Tensor,
    ) -> Tensor:
        thinned, stays = dropped(x, rate)
        ctx.rate, ctx.compute = rate, compute
        ctx.save_for_backward(weight, stays, *sources)
        return _product(thinned, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, stays, *sources = ctx.saved_tensors
        rank, dims = weight.shape
        rows = grad.reshape(-1, rank)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            to_x = only_those((rows @ weight).view(stays.shape), stays, ctx.rate)
        if ctx.needs_input_grad[1]:
            x = sources[0] if ctx.compute is None else ctx.compute(*sources)
            x = only_those(x, stays, ctx.rate)
            to_weight = rows.t() @ x.reshape(-1, dims)
        return to_x, to_weight, None, None, *(None for _ in sources)


class ProductAgain(Function):
    """:func:`product` that keeps what x is made of in its place."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, compute: Callable[..., Tensor], *sources: Tensor
    ) -> Tensor:
        return _product(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, weight, ctx.compute, *sources = inputs
        ctx.save_for_backward(weight, *sources)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *sources = ctx.saved_tensors
        rank, dims = weight.shape
        rows = grad.reshape(-1, rank)
        to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            parts = grad.shape[-1] // rank  # by its number: a batch may be empty
            to_x = (rows @ weight).view(*grad.shape[:-1], parts * dims)
        if ctx.needs_input_grad[1]:
            to_weight = rows.t() @ ctx.compute(*sources).reshape(-1, dims)
        return to_x, to_weight, None, *(None for _ in sources)


def add_product(
    y: Tensor,
    h: Tensor,
    weight: Tensor,
    scale: float = 1.0,
    bias: Tensor | None = None,
    first: int | None = None,
) -> Tensor:
    """``y + scale * (h W^T + b)``: the second half of a low-rank sum, and its addition.

    Args:
        y: (..., parts * out_dims).
        h: (..., parts * rank).
        weight: (out_dims, rank); both halves of h and y are taken part by part.
        scale: Factor of what is added.
        bias: (out_dims,).
        first: Where y is wider than W: only channels ``first`` to ``first + out_dims``
            of y are added to.
    """
    if not lean(y, h, weight, bias) or y.stride(-1) != 1:
        parts = h.shape[-1] // weight.shape[1]
        low = h if parts == 1 else h.unflatten(-1, (parts, -1))
        added = F.linear(low, weight, bias) * scale
        added = added if parts == 1 else added.flatten(-2)
        if first is not None:
            rest = y.shape[-1] - first - len(weight)
            added = F.pad(added, (first, rest))
        return y + added
    return AddProduct.apply(y, h, weight, bias, scale, first)


class AddProduct(Function):
    """:func:`add_product` by one matrix product that adds, each way.

    Thin factors stand where the libraries are fast: along the rows of the result.
    """

    @staticmethod
    def forward(
        y: Tensor,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        first: int | None,
    ) -> Tensor:
        low, thin = h.reshape(-1, weight.shape[1]), weight.t()
        if first is None:
            rows = y.reshape(-1, len(weight))
            out = torch.addmm(rows, low, thin, alpha=scale)
            into = out
        else:
            out = y.reshape(-1, y.shape[-1]).clone()
            into = out.narrow(1, first, len(weight))
            into.addmm_(low, thin, alpha=scale)
        if bias is not None:
            into.add_(bias, alpha=scale)
        # A view that is made in here may not be written to behind it, as activations
        # in place do.
        return torch.ops.aten._unsafe_view(out, y.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, h, weight, _, ctx.scale, ctx.first = inputs
        ctx.save_for_backward(h, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, weight = ctx.saved_tensors
        size, rank = weight.shape
        rows = grad
        if ctx.first is not None:
            rows = grad.narrow(-1, ctx.first, size)
        rows = rows.reshape(-1, size)
        to_h = to_weight = to_bias = None
        if ctx.needs_input_grad[1]:
            thin = (weight.t() * ctx.scale).contiguous()
            to_h = F.linear(rows, thin).view(h.shape)
        if ctx.needs_input_grad[2]:
            to_weight = (h.reshape(-1, rank).t() @ rows).mul(ctx.scale).t()
        if ctx.needs_input_grad[3]:
            to_bias = rows.sum(0) * ctx.scale
        to_y = grad if ctx.needs_input_grad[0] else None
        return to_y, to_h, to_weight, to_bias, None, None


def add_scaled_product(
    y: Tensor, h: Tensor, weight: Tensor, columns: Tensor | None, rows: Tensor
) -> Tensor:
    """``y + h V^T`` with ``V = diag(rows) W diag(columns)``.

    V is written again for the backward pass, and only its vectors are kept beside W.

    Args:
        y: (..., out_dims).
        h: (..., rank).
        weight: (out_dims, rank).
        columns: (rank,), None for ones.
        rows: (out_dims,).
    """
    if not lean(y, h, weight, columns, rows) or y.stride(-1) != 1:
        return y + F.linear(h, _scaled_both(weight, columns, rows))
    return AddScaledProduct.apply(y, h, weight, columns, rows)


def _scaled_both(weight: Tensor, columns: Tensor | None, rows: Tensor) -> Tensor:
    return (weight if columns is None else weight * columns) * rows[:, None]


class AddScaledProduct(Function):
    """:func:`add_scaled_product` by one matrix product that adds."""

    @staticmethod
    def forward(
        y: Tensor, h: Tensor, weight: Tensor, columns: Tensor | None, rows: Tensor
    ) -> Tensor:
        size, rank = weight.shape
        thin = _scaled_both(weight, columns, rows).t()
        out = torch.addmm(y.reshape(-1, size), h.reshape(-1, rank), thin)
        return torch.ops.aten._unsafe_view(out, y.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, weight, columns, rows = ctx.saved_tensors
        size, rank = weight.shape
        given = grad.reshape(-1, size)
        to_h = to_weight = to_columns = to_rows = None
        if ctx.needs_input_grad[1]:
            thin = _scaled_both(weight, columns, rows).t().contiguous()
            to_h = F.linear(given, thin).view(h.shape)
        if any(ctx.needs_input_grad[2:]):
            moved = (h.reshape(-1, rank).t() @ given).t()  # the gradient of V
            if ctx.needs_input_grad[2]:
                to_weight = _scaled_both(moved, columns, rows)
            moved = moved * weight
            if ctx.needs_input_grad[3]:
                to_columns = moved.t() @ rows
            if ctx.needs_input_grad[4]:
                to_rows = moved.sum(1) if columns is None else moved @ columns
        to_y = grad if ctx.needs_input_grad[0] else None
        return to_y, to_h, to_weight, to_columns, to_rows


# --------------------------------------------------------------- changed weights


def merged(
    module: Callable[[Tensor], Tensor],
    x: Tensor,
    ctx: Context,
    write: Callable[..., Tensor],
    factors: tuple[Tensor, ...],
    shift: Tensor | None = None,
    collect: Callable[..., tuple[Tensor, ...]] | None = None,
) -> Tensor | None:
    """``x V^T + b + shift`` with ``V = write(W, *factors)``, by one product.

    For deltas that change so much of a weight that a product of their own costs more
    than to write V, which is written again for the backward pass and not kept.

    Args:
        module: What :meth:`Delta.within` was given: a projection ``x W^T + b``, as
            :class:`~mmpetl.core.stack.Rows`, or something else.
        x: (..., in_dims).
        ctx: Facts of this forward pass.
        write: Gives V, (out_dims, in_dims), and leaves W as it is.
        factors: What V is made of beside W.
        shift: (out_dims,).
        collect: ``collect(g, x, W, *factors)``, the gradient of each factor, for g
            (M, out_dims) and x (M, in_dims); by default they are those of ``write`` for
            the gradient of V, which is ``g^T x``.

    Returns:
        (..., out_dims); None where the projection is another, its weight learns,
        numbers are so coarse that a small change would be lost in a weight, or a
        compiler makes the backward pass.
    """
    if not getattr(module, 'is_plain', False) or module.weight.requires_grad:
        return None
    if torch.compiler.is_compiling():  # which decides itself what is kept
        return None
    weight, bias = module.weight.flatten(1), module.full_bias()
    if x.dtype not in FULL or not lean(x, weight, bias, shift, *factors):
        return None
    if shift is not None:
        bias = shift if bias is None else bias + shift
    compute, sources = _again(x, ctx.made_of(x))
    if not any(factor.requires_grad for factor in factors):
        sources = ()
    how = write, collect, compute, len(factors)
    return Merged.apply(x, weight, bias, how, *factors, *sources)


class Merged(Function):
    """:func:`merged`, which keeps x or what it is made of, W and the factors."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, how: tuple, *tensors: Tensor
    ) -> Tensor:
        write, _, _, count = how
        return F.linear(x, write(weight, *tensors[:count]), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, weight, _, ctx.how, *tensors = inputs
        ctx.save_for_backward(weight, *tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        write, collect, compute, count = ctx.how
        weight, *tensors = ctx.saved_tensors
        factors, sources = tensors[:count], tensors[count:]
        rows = grad.reshape(-1, len(weight))
        to_x = to_bias = None
        to_factors: tuple[Tensor | None, ...] = (None,) * count
        learn = bool(sources)
        again = torch.is_grad_enabled()  # a backward pass of this one
        with torch.set_grad_enabled(again or (learn and collect is None)):
            written = write(weight, *factors)
        if ctx.needs_input_grad[0]:
            to_x = (rows @ written).view(*grad.shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        if learn:
            x = sources[0] if compute is None else compute(*sources)
            x = x.reshape(-1, weight.shape[1])
            if collect is not None:
                to_factors = collect(rows, x, weight, *factors)
            else:
                needs = ctx.needs_input_grad[4:]
                learning = [f for f, n in zip(factors, needs, strict=False) if n]
                found = iter(
                    torch.autograd.grad(
                        written, learning, rows.t() @ x, create_graph=again
                    )
                )
                to_factors = tuple(next(found) if n else None for n in needs[:count])
        return to_x, None, to_bias, None, *to_factors, *(None for _ in sources)


# --------------------------------------------------------------- scale and shift


def scaled(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """``gamma * y + beta`` in one pass.  y: (..., C); gamma, beta: (C,)."""
    return torch.addcmul(beta, y, gamma)


def scale_shift(
    y: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    output_kept: bool = False,
    made: Made | None = None,
) -> Tensor:
    """``gamma * y + beta`` that keeps y, or where it can what leaves it.

    Args:
        y: (..., C).
        gamma: (C,).
        beta: (C,), None for zero.
        output_kept: Whether what follows keeps what leaves (see
            :attr:`Context.output_kept`), so that keeping it costs nothing.
        made: How y may be computed again (:meth:`Context.made_of`).
    """
    learns = gamma.requires_grad or (beta is not None and beta.requires_grad)
    if not (learns and lean(y, gamma, beta)):
        # Scales near one would round to one in half precision, so they multiply in
        # their own and only the result is cast.
        z = y * gamma
        return (z if beta is None else z + beta).to(y.dtype)
    compute, sources = _again(y, made)
    if compute is not None:
        return ScaleAgain.apply(y, gamma, beta, compute, *sources)
    lost = own = None
    if output_kept and gamma.dtype in FULL and has_values(y):
        lost = lost_channels(gamma, beta)
        own = y.index_select(-1, lost) if len(lost) else None
    return ScaleShift.apply(y, gamma, beta, lost, own)


FULL = (torch.float32, torch.float64)


def lost_channels(gamma: Tensor, beta: Tensor | None) -> Tensor:
    """Channels of which ``y`` cannot be told from ``z = gamma * y + beta``.

    ``(z - beta) / gamma`` is y with an error of about ``eps * (|y| + 2 |beta /
    gamma|)``, since z is rounded. So where gamma is small, or far below beta, y is kept
    itself: a gamma of zero would have no gradient otherwise.
    """
    size = gamma.detach().abs()
    lost = size < 0.25
    if beta is not None:
        lost = lost | (beta.detach().abs() > 4 * size)
    return lost.nonzero().flatten()


class ScaleShift(Function):
    """The gradient of gamma is ``sum(g y)``, that of beta ``sum(g)``.

    With ``y = (z - beta) / gamma`` the former is ``(sum(g z) - beta sum(g)) / gamma``,
    which needs what leaves in place of what enters; y of the lost channels is kept.
    """

    @staticmethod
    def forward(
        y: Tensor,
        gamma: Tensor,
        beta: Tensor | None,
        lost: Tensor | None,
        own: Tensor | None,
    ) -> Tensor:
        return y * gamma if beta is None else scaled(y, gamma, beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        y, gamma, beta, lost, own = inputs
        if lost is None:
            ctx.save_for_backward(y, gamma)
        else:
            ctx.save_for_backward(output, gamma, beta, lost, own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, gamma, *rest = ctx.saved_tensors
        to_y = grad * gamma if ctx.needs_input_grad[0] else None
        to_gamma, to_beta = sums(grad, kept)
        if rest:
            beta, lost, own = rest
            size = gamma if own is None else gamma.index_fill(0, lost, 1)
            moved = to_gamma if beta is None else to_gamma - beta * to_beta
            to_gamma = moved / size
            if own is not None:
                known, _ = sums(grad.index_select(-1, lost), own)
                to_gamma = to_gamma.index_copy(0, lost, known)
        to_beta = to_beta if ctx.needs_input_grad[2] else None
        return to_y, to_gamma, to_beta, None, None


class ScaleAgain(Function):
    """``gamma * y + beta`` that keeps what y is made of in its place."""

    @staticmethod
    def forward(
        y: Tensor,
        gamma: Tensor,
        beta: Tensor | None,
        compute: Callable[..., Tensor],
        *sources: Tensor,
    ) -> Tensor:
        return y * gamma if beta is None else scaled(y, gamma, beta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, gamma, _, ctx.compute, *sources = inputs
        ctx.save_for_backward(gamma, *sources)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gamma, *sources = ctx.saved_tensors
        to_y = grad * gamma if ctx.needs_input_grad[0] else None
        to_gamma, to_beta = sums(grad, ctx.compute(*sources))
        to_beta = to_beta if ctx.needs_input_grad[2] else None
        return to_y, to_gamma, to_beta, None, *(None for _ in sources)


def sums(grad: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """``sum(grad * y)`` and ``sum(grad)`` over all axes but the last, (C,) each."""
    c = y.shape[-1]
    grad, y = grad.reshape(-1, c), y.reshape(-1, c)
    return (grad * y).sum(0), grad.sum(0)


def scaled_norm(
    norm: Callable[[Tensor], Tensor],
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    ctx: Context | None = None,
) -> Tensor | None:
    """``gamma * norm(x) + beta`` as one layer norm; None where the norm is another.

    With scale w and shift b of the norm, that norm has ``gamma * w`` and
    ``gamma * b + beta``.

    Args:
        norm: What is called between x and the scale.
        x: (..., C).
        gamma: (C,).
        beta: (C,).
        ctx: Given, x is not kept where :attr:`Context.made` says what it is made of.
    """
    if not _is_layer_norm(norm):
        return None
    weight, bias = norm.weight, norm.bias
    if weight is None or gamma.dtype not in FULL or weight.shape != gamma.shape:
        return None
    alike = {t.dtype for t in (x, gamma, beta, weight)}
    if len(alike) > 1 or autocasts(x):
        return None
    weight = weight * gamma
    bias = beta if bias is None else scaled(bias, gamma, beta)
    made = None if ctx is None else ctx.made_of(x)
    if made is not None and lean(x, *made.sources):
        return NormAgain.apply(x, weight, bias, norm.eps, made.compute, *made.sources)
    return F.layer_norm(x, weight.shape, weight, bias, norm.eps)


def norm_again(
    norm: Callable[[Tensor], Tensor], x: Tensor, ctx: Context
) -> Tensor | None:
    """``norm(x)`` that keeps what x is made of in its place.

    Args:
        norm: A layer norm.
        x: (..., C).
        ctx: Facts of this forward pass.

    Returns:
        (..., C); None where the norm is another, or nothing says what x is made of.
    """
    made = ctx.made_of(x)
    if made is None or not _is_layer_norm(norm):
        return None
    weight, bias = norm.weight, norm.bias
    if weight is None or bias is None:
        return None
    if not lean(x, weight, bias, *made.sources):
        return None
    return NormAgain.apply(x, weight, bias, norm.eps, made.compute, *made.sources)


def _is_layer_norm(norm: Any) -> bool:
    """Whether it is a layer norm that nothing else watches."""
    if type(norm) is not nn.LayerNorm and not _is_timm_norm(norm):
        return False
    return not (norm._forward_hooks or norm._forward_pre_hooks or norm._backward_hooks)


def _is_timm_norm(norm: Any) -> bool:
    """Whether it is timm's LayerNorm, which computes what PyTorch's does."""
    cls = type(norm)
    named = (cls.__module__, cls.__name__) == ('timm.layers.norm', 'LayerNorm')
    return named and not getattr(norm, '_fast_norm', False)


class NormAgain(Function):
    """A layer norm that keeps what x is made of in its place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        compute: Callable[..., Tensor],
        *sources: Tensor,
    ) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.compute = compute
        ctx.save_for_backward(weight, bias, mean, rstd, *sources)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, mean, rstd, *sources = ctx.saved_tensors
        grads = torch.ops.aten.native_layer_norm_backward(
            grad.contiguous(),
            ctx.compute(*sources),
            weight.shape,
            mean,
            rstd,
            weight,
            bias,
            ctx.needs_input_grad[:3],
        )
        return *grads, None, None, *(None for _ in sources)
