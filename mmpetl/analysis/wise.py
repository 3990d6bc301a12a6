"""WiSE: every model on the line between the base and the tuned one, without training.

Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022,
https://arxiv.org/abs/2109.01903, and for inserted modules Mai et al.,
https://arxiv.org/abs/2409.16434:

- tensors that both models have, heads included: ``(1 - alpha) base + alpha tuned``;
- what a method inserts is scaled at its site: where ``y`` would leave the base and
  ``f(y)`` leaves the tuned model, ``y + alpha (f(y) - y)`` leaves. For an adapter that
  is ``alpha`` times its branch, for LoRA, FacT and RepAdapter ``alpha`` times the
  increment of the weight, for SSF the scale ``1 + alpha (gamma - 1)`` and the shift
  ``alpha beta``.

``torch.lerp`` gives both ends bit for bit. Prompts, prefixes and queries add tokens,
keys or widths and have no neutral element: :func:`obstacle` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core import (
    Context,
    Delta,
    Method,
    PETLError,
    Site,
    Slot,
    check_range,
    injections,
)

ALPHAS = tuple(i / 10 for i in range(11))
"""The study's: 0 is the base, 1 the tuned model."""


class Scaled(Delta):
    """``x + alpha (delta(x) - x)`` at both ports of another delta.

    Args:
        delta: What is scaled; it may leave tensors of another dtype, but no other
            shape.
        alpha: 0 leaves what the base has, 1 what the delta makes of it.
    """

    def __init__(self, delta: Delta, alpha: float) -> None:
        super().__init__()
        self.delta = delta
        self.taps, self.reads_base = delta.taps, delta.reads_base
        self.alpha = alpha
        self.dtype = delta.dtype  # in which features are handed to it

    def between(self, base: Any, tuned: Any) -> Any:
        """The point between both; what the delta hands through stays as it is."""
        if tuned is base:
            return base
        if not isinstance(tuned, Tensor) or tuned.shape != base.shape:
            raise PETLError(
                f'{type(self.delta).__name__} changes the shape of what it acts on, so '
                'its effect cannot be scaled'
            )
        return torch.lerp(base, tuned.to(base.dtype), self.alpha)

    def before(self, x: Tensor, ctx: Context) -> Tensor:
        return self.between(x, self.delta.before(x, ctx))

    def after(self, x: Tensor, y: Tensor, ctx: Context) -> Tensor:
        return self.between(y, self.delta.after(x, y, ctx))


def _grows(method: Method, site: Site, delta: Delta) -> str:
    """What a delta adds that a site of the base does not have, or an empty string."""
    acts_before = type(delta).before is not Delta.before
    if site.kind == 'tokens' and acts_before:
        return 'tokens'
    if site.kind == 'attn.core' and acts_before:
        return 'keys and values'
    if site.kind == 'feature' and type(method).feature_dims is not Method.feature_dims:
        return 'width'
    return ''


def obstacle(model: nn.Module) -> str | None:
    """Why the methods of a model cannot be scaled, in one line; None if they can.

    Args:
        model: An injected backbone, or a model that contains one.
    """
    found = list(_acting(model))
    if not found:
        return f'{type(model).__name__} holds no method that is enabled'
    for module, name, slot in found:
        kind = type(slot.method).__name__
        if not slot.method.scales:
            return (
                f'{kind} puts a feature of its own in place of that of the base; '
                'there is nothing between them to interpolate'
            )
        for site in slot.sites:
            delta = module.get_submodule(f'{site.path}.{name}')
            grown = _grows(slot.method, site, delta)
            if grown:
                return (
                    f'{kind} adds {grown} at {site}, which have no neutral '
                    'element: no alpha but 1 is defined'
                )
    return None


def _acting(model: nn.Module) -> Iterator[tuple[nn.Module, str, Slot]]:
    """Backbone, name and slot of every method that makes the tuned model.

    What is switched off takes no part, and keeps what it has learnt.
    """
    for _, module, record in injections(model):
        for name, slot in record.slots.items():
            if slot.enabled:
                yield module, name, slot


def _added(model: nn.Module) -> set[str]:
    """Keys of ``model.state_dict()`` that methods have added."""
    keys = set()
    for prefix, module, record in injections(model):
        keys |= {
            f'{prefix}.{name}'.lstrip('.')
            for name in module.state_dict()
            if name not in record.base
        }
    return keys


def _backbone(model: nn.Module) -> set[str]:
    """Keys of the base's own tensors, without those that train with the head."""
    keys = set()
    for prefix, _, record in injections(model):
        keys |= {f'{prefix}.{n}'.lstrip('.') for n in record.base - record.head}
    return keys


def check_base(model: nn.Module, base: Mapping[str, Tensor]) -> None:
    """Raise PETLError unless ``base`` is the state of the model's own base.

    Args:
        model: A tuned model.
        base: State dict of the base with a head for the same classes.
    """
    reason = obstacle(model)
    if reason is not None:
        raise PETLError(reason)
    state, added = model.state_dict(), _added(model)
    trained = _trained(model)
    for key, value in state.items():
        if key in added:
            continue
        if key not in base:
            raise PETLError(
                f'the base has no {key}; give a model of the same config without what '
                'the method inserts, such as a run of LinearProbe'
            )
        if base[key].shape != value.shape:
            raise PETLError(
                f'{key} has shape {tuple(base[key].shape)} in the base and '
                f'{tuple(value.shape)} in the tuned model; heads must be of the same '
                'classes and width'
            )
        if key in trained or not value.is_floating_point():
            continue
        if not torch.equal(value, base[key].to(value.device)):
            raise PETLError(
                f'{key} is frozen, but differs from the base; both models must start '
                'from the same weights'
            )


def _trained(model: nn.Module) -> set[str]:
    """Keys of the tensors of the base and the heads that tuning may have moved."""
    keys = set(model.state_dict()) - _backbone(model)
    for prefix, _, record in injections(model):
        selected = record.selected()
        keys |= {f'{prefix}.{name}'.lstrip('.') for name in selected}
    return keys - _added(model)


@contextmanager
def interpolated(
    model: nn.Module,
    base: Mapping[str, Tensor],
    alpha: float,
    head_only: bool = False,
) -> Iterator[nn.Module]:
    """The model at ``alpha`` while the context is open; afterwards it is as before.

    Args:
        model: A tuned model, in eval mode.
        base: State dict of its base with the base's head: zero-shot, or trained on
            frozen features. Keys that the model does not have are not looked at.
        alpha: 0 is the base with the base's head, 1 the tuned model.
        head_only: Leave the backbone tuned and interpolate the head alone, the
            study's control.

    Raises:
        PETLError: The method has no neutral element, or ``base`` is another model's.
    """
    check_range('interpolated', 'alpha', alpha, 0, 1)
    check_base(model, base)
    keys = _trained(model)
    if head_only:
        keys -= _backbone(model)
    state = model.state_dict()
    kept = {k: state[k].clone() for k in keys if state[k].is_floating_point()}
    plugs = [] if head_only else list(_plugs(model))
    try:
        with torch.no_grad():
            for key, tuned in kept.items():
                start = base[key].to(tuned.device, tuned.dtype)
                state[key].copy_(torch.lerp(start, tuned, alpha))
        for plug, name, delta in plugs:
            plug[name] = Scaled(delta, alpha)
        yield model
    finally:
        for plug, name, delta in plugs:
            plug[name] = delta
        with torch.no_grad():
            for key, tuned in kept.items():
                state[key].copy_(tuned)


def _plugs(model: nn.Module) -> Iterator[tuple[nn.ModuleDict, str, Delta]]:
    for module, name, slot in _acting(model):
        for site in slot.sites:
            plug = module.get_submodule(site.path)
            yield plug, name, plug[name]


def best_alpha(alphas: Sequence[float], scores: Sequence[float]) -> int:
    """Index of the alpha with the highest validation score, of equals the lowest.

    The lower one is nearer to the base, which is the more robust of the two.

    Raises:
        PETLError: There are none, or not as many scores as alphas.
    """
    if not len(alphas) or len(alphas) != len(scores):
        raise PETLError(
            f'choosing needs a score per alpha, got {len(alphas)} and {len(scores)}'
        )
    return max(range(len(alphas)), key=lambda i: (scores[i], -alphas[i]))
