"""Which methods act together on one backbone.

A delta acts on what the deltas injected before it have left of its site; taps, which
only read, run behind them. So methods stack as long as nobody drops what another one
made. Where one does, the pair is refused: see :func:`conflict`, which knows what
methods declare and where they act, and none by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mmpetl.core.errors import PETLError
from mmpetl.core.injection import Injection, Slot
from mmpetl.core.method import Method
from mmpetl.core.site import PROJECTIONS, Site

EXITS = ('out', 'feature')
"""Kinds of sites where features leave the backbone."""

ONE_STREAM = ('mix', 'norm1', 'attn.core', *PROJECTIONS)
"""Kinds of sites in a block that meet one stream, or whose update all of them read."""


def check_stack(
    name: str, method: Method, sites: Sequence[Site], others: Mapping[str, Slot]
) -> None:
    """Refuse a method that cannot act beside those that already do.

    Args:
        name: The slot that it is to act in.
        method: The method.
        sites: Where it acts.
        others: The slots of the backbone; those that are off do not count.

    Raises:
        PETLError: One of the two would be lost, or they disagree on what leaves.
    """
    for other, slot in others.items():
        why = conflict(method, sites, slot.method, slot.sites) if slot.enabled else None
        if why is not None:
            raise PETLError(
                f'{type(method).__name__} in slot {name!r} cannot act beside '
                f'{type(slot.method).__name__} in slot {other!r}: {why}; disable or '
                'eject one of them, or choose settings that do not meet there '
                '(docs/stacking.md)'
            )


def conflict(
    a: Method, a_sites: Sequence[Site], b: Method, b_sites: Sequence[Site]
) -> str | None:
    """Why two methods cannot act together, in any order; None if they can.

    Args:
        a: One method.
        a_sites: Where it acts.
        b: The other.
        b_sites: Where that one acts.
    """
    for one, exits, other, sites in (
        (a, a_sites, b, b_sites),
        (b, b_sites, a, a_sites),
    ):
        who, whom = type(one).__name__, type(other).__name__
        for end in _replaced(one, exits):
            for site in sites:
                if _is_lost(site, end, one.normed):
                    return (
                        f'{who} hands over a feature of its own at {end.key}, which '
                        f'drops what {whom} does at {site.key}'
                    )
        count = one.features_per_input
        met = next((site for site in sites if site.kind in EXITS), None)
        if count > 1 and met is not None:
            return (
                f'{who} hands over {count} features per input, and {whom} acts at '
                f'{met.key}, where it has one'
            )
        met = _met_in_split(one, exits, sites)
        if met is not None:
            return (
                f'{who} has several streams per input from attn.proj to the end of '
                f'block {met.block}, and {whom} acts at {met.kind} there'
            )
    if a.tasks and b.tasks:
        return 'both tell tasks apart, and a pass is for the tasks of one'
    if _sets_width(a) and _sets_width(b):
        return 'both set the width of the feature that the head reads'
    return None


def unread(module: nn.Module, record: Injection) -> frozenset[str]:
    """Base parameters that only feed an output which an enabled slot replaces.

    They get no gradient, so they do not train meanwhile, whoever selects them.
    """
    ends = [
        (end, slot.method.normed)
        for slot in record.slots.values()
        if slot.enabled
        for end in _replaced(slot.method, slot.sites)
    ]
    if not ends:
        return frozenset()
    lost = {s.key for s in record.sites if any(_is_lost(s, *end) for end in ends)}
    outer = record.site_map.outer_modules(module)
    params = {p for key in lost & set(outer) for p in outer[key].parameters()}
    return frozenset(n for n, p in module.named_parameters() if p in params)


def _replaced(method: Method, sites: Sequence[Site]) -> list[Site]:
    """The exits where a method drops what arrives."""
    return [site for site in sites if site.kind in method.replaces]


def _is_lost(site: Site, end: Site, normed: bool) -> bool:
    """Whether what is done at a site goes no further than a replaced exit.

    Args:
        site: Any site.
        end: The exit.
        normed: Whether what takes its place passes the norm.
    """
    if site.index != end.index:
        return False
    if site.kind == 'out.norm':
        if normed and end.kind == 'out':
            return False
        # A norm behind a mean over tokens reads what leaves at `out`.
        return site.has_grid or end.kind == 'feature'
    return site.kind in EXITS[: EXITS.index(end.kind) + 1]


def _met_in_split(
    method: Method, own: Sequence[Site], others: Sequence[Site]
) -> Site | None:
    """One of the others' sites that meets several streams of a method."""
    blocks = {site.block for site in own if site.kind == method.splits}
    inside = (s for s in others if s.block in blocks and s.kind not in ONE_STREAM)
    return next(inside, None)


def _sets_width(method: Method) -> bool:
    return type(method).feature_dims is not Method.feature_dims
