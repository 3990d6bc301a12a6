"""Who owns which parameter, and how many of them train."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from enum import Enum

from torch import nn

from mmpetl.core.injection import injections


class Owner(str, Enum):
    """What a parameter belongs to."""

    DELTA = 'delta'
    """Added by a method."""
    SELECTED = 'selected'
    """Of the base, kept trainable by a method."""
    HEAD = 'head'
    """Outside of the backbone, or new in it because no checkpoint holds it."""
    BASE = 'base'
    """Of the frozen base."""


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters. ``delta + selected`` is what papers print."""

    delta: int = 0
    selected: int = 0
    head: int = 0
    base: int = 0
    """Frozen parameters of the base."""

    @property
    def backbone(self) -> int:
        """Trainable parameters of the backbone, heads excluded."""
        return self.delta + self.selected

    @property
    def trainable(self) -> int:
        """Everything that trains."""
        return self.delta + self.selected + self.head

    def as_dict(self) -> dict[str, int]:
        """The four numbers, for records."""
        return asdict(self)


def owners(model: nn.Module) -> dict[str, Owner]:
    """The owner of every parameter of ``model``, by name."""
    result = dict.fromkeys((n for n, _ in model.named_parameters()), Owner.HEAD)
    for prefix, module, record in injections(model):
        selected, trunk = record.selected(), record.base - record.head
        for name, _ in module.named_parameters():
            key = f'{prefix}.{name}'.lstrip('.')
            if 'petl' in name.split('.'):
                result[key] = Owner.DELTA
            elif name in trunk:
                result[key] = Owner.SELECTED if name in selected else Owner.BASE
            # What else there is was a head from the start, or came after the injection.
    return result


def count_trainable(model: nn.Module) -> Counts:
    """Count parameters by owner. Frozen parameters outside the base count nowhere."""
    counts = dict.fromkeys((o.value for o in Owner), 0)
    params = dict(model.named_parameters())
    for name, owner in owners(model).items():
        if owner is Owner.BASE or params[name].requires_grad:
            counts[owner.value] += params[name].numel()
    return Counts(**counts)


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many parameters train, of how many there are, heads included.

    Args:
        model: Any model; frozen parameters count among all.

    Example:
        >>> import timm, mmpetl
        >>> model = timm.create_model('test_vit', num_classes=5)
        >>> _ = mmpetl.inject(model, dict(type='LoRA', rank=2))
        >>> mmpetl.print_trainable_parameters(model)
        trainable params: 3,397 || all params: 309,637 || trainable%: 1.0971
    """
    params = list(model.parameters())
    trains = sum(p.numel() for p in params if p.requires_grad)
    every = sum(p.numel() for p in params)
    share = 100 * trains / max(1, every)
    print(
        f'trainable params: {trains:,} || all params: {every:,} || '
        f'trainable%: {share:.4f}'
    )


def describe(model: nn.Module) -> str:
    """A paragraph for the log: slots with method and sites by kind, counts by owner."""
    lines = []
    for _, _, record in injections(model):
        for name, slot in record.slots.items():
            kinds = Counter(site.kind for site in slot.sites)
            where = ', '.join(f'{k} x {n}' for k, n in kinds.items()) or 'no site'
            mode = 'frozen, ' if slot.frozen else ''
            lines.append(
                f'slot {name!r} ({mode}{"on" if slot.enabled else "off"}): '
                f'{slot.method!r} on {record.site_map.host.__name__}: {where}'
            )
    counts = count_trainable(model)
    share = counts.backbone / max(1, counts.backbone + counts.base)
    lines.append(
        f'trainable: {counts.delta:,} in deltas, {counts.selected:,} selected, '
        f'{counts.head:,} in heads; {counts.base:,} frozen '
        f'({100 * share:.3f} % of the backbone trains)'
    )
    return '\n'.join(lines)
