"""Joining a method and a backbone."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any

import torch
from torch import nn

from mmpetl.core.affine import Affine
from mmpetl.core.delta import Delta, Plug
from mmpetl.core.errors import PETLError, shorten
from mmpetl.core.fingerprint import check_unmoved, tensor_digests
from mmpetl.core.injection import (
    Injection,
    Kept,
    Slot,
    check_whole,
    child_of,
    injections,
    moving_statistics,
    parts_of,
    plug_of,
    rearranging,
    record_of,
    tensor_of,
    unplug,
)
from mmpetl.core.leaf_map import LeafMap
from mmpetl.core.method import Method, build_method
from mmpetl.core.narrow import (
    Where,
    as_where,
    check_found,
    check_hosts_plain,
    check_reached,
    locate,
    narrowed,
    narrowed_roles,
    per_site,
    site_names,
)
from mmpetl.core.patterns import as_patterns
from mmpetl.core.places import check_grids, check_placed, measure
from mmpetl.core.role import Role
from mmpetl.core.several import WHERE, Methods, build_entries, is_several
from mmpetl.core.site import AFTER_ONLY, LEAF_KINDS, Site
from mmpetl.core.sitemap import SiteMap, find_site_map, is_below
from mmpetl.core.slots import release, remove, retraining
from mmpetl.core.stacking import check_stack
from mmpetl.lazy import moved_names

# Base values are kept for `disable` and `eject` while a method selects at most this
# share of the base; beyond it a second copy of the model would be held.
KEEP_AT_MOST = 0.1


def core_of(backbone: nn.Module) -> nn.Module:
    """The module that holds the sites; a wrapper such as TIMMBackbone gives its own.

    Raises:
        PETLError: No site map describes the backbone.
    """
    if record_of(backbone) is not None:
        return backbone
    inner = find_site_map(backbone).core(backbone)
    return inner if inner is backbone else core_of(inner)


def inject(
    backbone: nn.Module,
    method: Methods,
    *,
    slot: str | None = None,
    head: Iterable[str] = (),
    frozen_drop_path: bool = False,
    delta_dtype: torch.dtype | None = None,
    layers: str | Iterable[str] | None = None,
    blocks: Any = None,
    places: Mapping[str, str | Iterable[str]] | None = None,
    example: Any = None,
) -> nn.Module:
    """Plug a method, or several, into a backbone, in place, and freeze the rest.

    Either all of it happens or, with an error, nothing.

    Args:
        backbone: A backbone that a file of ``mmpetl/backbones`` describes, or any
            other model for the methods that act on its layers, with its weights
            loaded.
        method: A method, its name or its config; or a list of these, each of which
            takes the next slot, and may hold ``layers`` and ``blocks`` of its own
            (:mod:`mmpetl.core.several`).
        slot: Name of the place the method takes, by default the next number.
            Several methods may share one backbone.
        head: Path prefixes of base parameters that train like a head, because the
            checkpoint does not hold them (``fc_norm`` of a self-supervised VideoMAE).
        frozen_drop_path: Whether stochastic depth acts in the frozen trunk.
        delta_dtype: Dtype of what is added; by default that of the base, but at least
            float32, which optimizers and gradient scalers need. Base parameters that
            a method selects keep theirs.
        layers: Patterns (``fnmatch``) over dotted paths, one or a list, where
            ``'!pattern'`` excludes: the method acts on these layers only. On a
            described backbone they narrow what the method does there.
        blocks: Indices of blocks, a slice, a slice as text (``'6:'``), or a list of
            these: the method acts inside of these blocks only.
        places: Patterns of modules that stand for a place inside of a block, by kind:
            ``{'ffn': '*.mlp'}``, for methods that only read what enters and leaves.
        example: An input of the model (a tensor, a tuple or a dict of arguments), with
            which one pass shows that every chosen layer is reached. Places need one.

    Returns:
        The same object, still an instance of its class, no key renamed. Parameters
        that were frozen before, as a head may be, stay frozen.

    Raises:
        PETLError: The backbone does not offer what the method needs, holds this method
            already, or holds one that it cannot act beside; a pattern matches nothing,
            or a layer is not reached.

    Examples:
        >>> import timm, torch, mmpetl
        >>> model = timm.create_model('test_vit')
        >>> _ = mmpetl.inject(model, dict(type='LoRA', rank=4))
        >>> [fact.name for fact in mmpetl.slots(model)]
        ['0']
        >>> model.blocks[0].attn.qkv.weight.requires_grad
        False
        >>> model = timm.create_model('test_vit')
        >>> both = [dict(type='LoRA', rank=4, blocks='3:'), 'VPTDeep']
        >>> [fact.name for fact in mmpetl.slots(mmpetl.inject(model, both))]
        ['0', '1']
    """
    given = {'slot': slot, 'layers': layers, 'blocks': blocks, 'places': places}
    shared = {
        'head': tuple(head),
        'frozen_drop_path': frozen_drop_path,
        'delta_dtype': delta_dtype,
        'example': example,
    }
    if not is_several(method):
        return _inject_one(backbone, build_method(method), **given, **shared)
    for name, value in given.items():
        if value is not None:
            raise PETLError(
                f'{name}= is of one method, and a list is given; '
                + (
                    f"write it into the entries, as in dict(type='LoRA', {name}=...)"
                    if name in WHERE
                    else 'inject the methods one after another'
                )
            )
    entries = build_entries(method)
    with _all_of_several(backbone):
        for entry in entries:
            _inject_one(backbone, entry.method, **entry.where, **shared)
    return backbone


def _inject_one(
    backbone: nn.Module,
    method: Method,
    *,
    slot: str | None = None,
    head: tuple[str, ...],
    frozen_drop_path: bool,
    delta_dtype: torch.dtype | None,
    example: Any,
    layers: str | Iterable[str] | None = None,
    blocks: Any = None,
    places: Mapping[str, str | Iterable[str]] | None = None,
) -> nn.Module:
    """:func:`inject` of one method."""
    is_named = any(given is not None for given in (layers, blocks, places))
    module, site_map = locate(backbone, method, is_named, places is not None)
    record = record_of(module)
    check_whole(module)
    if record is None:
        by_layer = isinstance(site_map, LeafMap)
        site_map.head += head if by_layer else ()
        sites = tuple(site_map.sites_of(module))
    else:
        by_layer, sites = isinstance(record.site_map, LeafMap), record.sites
    where = as_where(layers, blocks, sites)
    slot = _free_slot(record, method, slot, where)
    _warn_of_optimizers(module, method)
    placed: tuple[Site, ...] = ()
    if places is not None:
        check_placed(method, places, site_map)
        placed = tuple(measure(module, places, example))
        check_grids(method, list(placed))
        offered = list(placed)
    elif by_layer:
        offered = method.choose_leaves(list(sites))
        if where.is_all and not method.differs:
            offered = wide_enough(method, offered)
    else:
        offered = _wanted(method, module, sites)
    named = where.layers is not None or method.differs
    names = site_names(module, site_map, offered) if named else {}
    wanted = narrowed(method, where, offered, names)
    methods = per_site(method, wanted, names)
    check_shapes(method, wanted, site_map if record is None else record.site_map, sites)
    if by_layer and wanted and not method.differs:
        method.check(wanted)
    check_hosts_plain(module, wanted)
    if example is not None:
        check_reached(module, wanted, example)
    check_stack(slot, method, wanted, {} if record is None else record.slots)
    shared = method.share(wanted)
    deltas = {site: methods[site].build(site) for site in wanted}
    _check_deltas(method, deltas)
    _check_ports(method, deltas)
    with _all_or_nothing(module, slot):
        if record is None:
            record = _adopt(module, site_map, sites, head, frozen_drop_path)
        if placed:
            new = tuple(site for site in placed if site not in record.sites)
            site_map.places += new
            record.sites += new
        check_unmoved(module, record)
        roles = _open_roles(module, record)
        selected = _selected(method, module, narrowed_roles(where, roles))
        if not where.is_all or by_layer:
            every = selected if where.is_all else _selected(method, module, roles)
            check_found(
                module, site_map, method, where, wanted, offered, names, selected, every
            )
        if method.trains_weights:
            selected |= _weights_behind(module, site_map, wanted) & {
                role.name for role in roles
            }
        selected |= moving_statistics(module, selected)
        entry = Slot(
            method,
            tuple(wanted),
            selected,
            _restores(module, record, selected),
            layers=where.layers,
            blocks=where.blocks,
            places=None
            if places is None
            else {kind: as_patterns(given) for kind, given in places.items()},
        )
        _plug(module, site_map, slot, entry, deltas, shared, delta_dtype)

        _check_readable(module, deltas)

        def weights(host: str, kind: str, index: int | None = None) -> Affine:
            return site_map.affine_at(module, sites, host, kind, index)

        with torch.no_grad():
            method.initialise(deltas, weights)
        for delta in deltas.values():
            delta.losses = method.losses
            delta.attach(slot, shared)  # a method may add parameters when it starts
        with rearranging(module, record), retraining(module, record):
            _keep_base(module, record, entry)
            record.slots[slot] = entry
    module.train(record.training)
    for part in module.modules():
        if _has_mark(part):
            part._is_init = True
    return backbone


def _check_readable(module: nn.Module, deltas: Mapping[Site, Delta]) -> None:
    """Refuse deltas that read base weights where there are no plain ones."""
    for site, delta in deltas.items():
        if delta.reads_base:
            host = module.get_submodule(site.host)
            host.base_of(site.kind, str(site)).check_readable()


def wanted_sites(
    backbone: nn.Module, method: Method | type[Method] | str | Mapping[str, Any]
) -> list[Site]:
    """The sites a method would plug into; the backbone stays as it is.

    Raises:
        PETLError: The backbone cannot serve the method.
    """
    module = core_of(backbone)
    record = record_of(module)
    site_map = record.site_map if record else find_site_map(module)
    sites = record.sites if record else tuple(site_map.sites_of(module))
    method = build_method(method)
    wanted = _wanted(method, module, sites)
    check_shapes(method, wanted, site_map, sites)
    return wanted


def check_shapes(
    method: Method, wanted: Sequence[Site], site_map: SiteMap, sites: Iterable[Site]
) -> None:
    """Refuse sites whose features do not have the shapes that a method counts on.

    Args:
        method: The method.
        wanted: Where it is to act.
        site_map: What describes the backbone.
        sites: All that there are. What is handed on from block to block is refused
            also where the block in between is left out.

    Raises:
        PETLError: It makes something of what enters and what leaves, and they differ;
            or it reads a grid, or looks along time, where there is none.
    """
    who, page = type(method).__name__, method.page()
    still = [site for site in wanted if not site.timed and site.frames == 1]
    if method.along_time and still:
        raise PETLError(
            f'{who} looks along time, and at {still[0]} the batch holds no frames of '
            'clips, nor is time an axis of the grid; put mmpetl.FrameBackbone around '
            f'the backbone, or take a trunk that reads clips{page}'
        )
    instead = 'take another method'
    if method.apart:
        instead = f'leave such blocks out with blocks=, or {instead}'
    kinds = {site.kind for site in wanted}
    passed = wanted if method.apart else [s for s in sites if s.kind in kinds]
    for site in passed:
        if site.block is None:
            continue
        if method.reads_grid and site_map.flat:
            raise PETLError(
                f'{who} reads the grid of its features, and at {site} there is none: '
                f'{site_map.flat}{page}'
            )
        if site.reshapes and not method.across:
            raise PETLError(
                f'{who} brings together what enters {site} and what leaves, and this '
                f'block pools or widens the stream in between ({site.in_dims} to '
                f'{site.out_dims} channels); {instead}{page}'
            )


def _free_slot(
    record: Injection | None, method: Method, slot: str | None, where: Where
) -> str:
    taken = {} if record is None else record.slots
    if slot is not None and not _is_slot_name(slot):
        raise PETLError(
            f'a slot cannot be called {slot!r}; it names a module, so take letters, '
            'digits and underscores, and no name that modules have for something else'
        )
    for name, other in taken.items():
        there = other.layers, other.blocks
        alike = other.method.config() == method.config()
        # At another part of the trunk it is another method.
        alike &= there == (where.layers, where.blocks)
        if alike and slot in (None, name):
            raise PETLError(
                f'{type(method).__name__} is already injected in slot {name!r}; '
                'eject it first, or name another slot'
            )
    if slot in taken:
        raise PETLError(
            f'slot {slot!r} holds {taken[slot].method!r}; eject it first, '
            f'or name another slot'
        )
    return slot or next(n for n in map(str, count()) if n not in taken)


def _warn_of_optimizers(module: nn.Module, method: Method) -> None:
    """Warn where training has begun: a backward pass has left gradients."""
    if any(param.grad is not None for param in module.parameters()):
        warnings.warn(
            f'{type(method).__name__} adds parameters after a backward pass; an '
            'optimizer that was made before does not hold them: make it anew, or use '
            'its add_param_group',
            stacklevel=4,
        )


def wide_enough(method: Method, sites: list[Site]) -> list[Site]:
    """Layers without those that are too narrow for a method, of which a warning tells.

    Gates and attention over channels have a few channels in many models. Where they are
    named, they are not left out, and the method says what does not fit.
    """
    wide = [site for site in sites if method.has_room(site)]
    thin = list(dict.fromkeys(s.host for s in sites if not method.has_room(s)))
    if not wide or not thin:
        return sites
    warnings.warn(
        f'{method!r} leaves out {len(thin)} layers that are too narrow for it '
        f'({shorten(thin, 2)}); layers= names those that it is to act at',
        stacklevel=4,
    )
    return wide


def _is_slot_name(slot: Any) -> bool:
    return (
        isinstance(slot, str)
        and slot.replace('_', 'a').isalnum()
        and not any(hasattr(kind(), slot) for kind in (Plug, Kept))
    )


@contextmanager
def _all_of_several(backbone: nn.Module) -> Iterator[None]:
    """Whatever fails inside of it, the slots that came inside of it leave again."""
    marks = {part: part._is_init for part in backbone.modules() if _has_mark(part)}
    before = {(id(m), name) for _, m, r in injections(backbone) for name in r.slots}
    try:
        yield
    except BaseException:
        for _, module, record in injections(backbone):
            for name in reversed(list(record.slots)):
                if (id(module), name) not in before:
                    remove(module, record, name, restore=False)  # nothing has learnt
        for part, mark in marks.items():
            part._is_init = mark
        raise


def _has_mark(part: nn.Module) -> bool:
    return hasattr(part, '_is_init')


@contextmanager
def _all_or_nothing(module: nn.Module, slot: str) -> Iterator[None]:
    """Whatever fails inside of it, the backbone is afterwards what it was before."""
    had = record_of(module) is not None
    flags = {param: param.requires_grad for param in module.parameters()}
    modes = {part: part.training for part in module.modules()}
    try:
        yield
    except BaseException:
        record = record_of(module)
        if record is not None:
            unplug(module, record, slot)
        if record is not None and not had:
            release(module, record)
        for param, flag in flags.items():
            param.requires_grad_(flag)
        for part, mode in modes.items():
            part.training = mode
        raise


def _adopt(
    module: nn.Module,
    site_map: SiteMap,
    sites: tuple[Site, ...],
    head: tuple[str, ...],
    frozen_drop_path: bool,
) -> Injection:
    """Swap the classes, freeze the base, and write down what it was."""
    params = dict(module.named_parameters())
    # `state_dict` has a shared tensor under each of its names.
    every = {n for n, _ in module.named_parameters(remove_duplicate=False)}
    every |= {n for n, _ in module.named_buffers(remove_duplicate=False)}
    for prefix in head:  # what the caller names must exist
        if not any(is_below(name, prefix) for name in every):
            raise PETLError(
                f'nothing in {type(module).__name__} is called {prefix!r}, so it '
                'cannot train with the head'
            )
    _freeze_as_in_training(module)
    every_head = head + site_map.head
    in_head = {n for n in params if any(is_below(n, h) for h in every_head)}
    record = Injection(
        site_map=site_map,
        sites=sites,
        base=frozenset(every),
        trainable_before=frozenset(n for n, p in params.items() if p.requires_grad),
        digests=tensor_digests(params),
        head=frozenset(in_head | moving_statistics(module, in_head)),
        extra_head=head,
        frozen_drop_path=frozen_drop_path,
        training=module.training,
    )
    site_map.swap(module)
    module.__dict__['_petl'] = record
    for name, param in params.items():
        if name not in record.head:
            param.requires_grad_(False)
    return record


def _freeze_as_in_training(module: nn.Module) -> None:
    """Let every part freeze what its own ``train`` freezes, modes left as they are.

    Some backbones freeze stages there and not when they are made, so one that has not
    been asked for its mode yet says that all of it trains.
    """
    modes = [(part, part.training) for part in module.modules()]
    for part, mode in modes:
        if type(part).train is not nn.Module.train:
            part.train(mode)
    for part, mode in modes:
        part.training = mode


def _wanted(method: Method, module: nn.Module, sites: tuple[Site, ...]) -> list[Site]:
    offered = {site.kind for site in sites}
    lacking = method.lacks(offered)
    wanted = [] if lacking else method.choose(list(sites))
    if lacking or (method.targets and not wanted):
        needed = lacking or method.targets
        record = record_of(module)
        site_map = find_site_map(module) if record is None else record.site_map
        reasons = {kind: site_map.why_absent(module, kind) for kind in needed}
        why = '; '.join(f'{kind}: {text}' for kind, text in reasons.items() if text)
        raise PETLError(
            f'{type(method).__name__} needs site kind {", ".join(needed)}; '
            f'{type(module).__name__} offers {", ".join(sorted(offered))}'
            f'{f" ({why})" if why else ""}{method.page()}'
        )
    if not method.differs:  # else by layer, in `per_site`
        method.check(wanted)
    return wanted


PORTS = {'before': ('x', 'ctx'), 'after': ('x', 'y', 'ctx')}
"""What the ports of a delta are called with."""


def _check_deltas(method: Method, deltas: Mapping[Site, Delta]) -> None:
    """Refuse what a method builds where nothing would run, train or be saved."""
    for site, delta in deltas.items():
        who = type(delta).__name__
        if not isinstance(delta, Delta):
            raise PETLError(
                f'{type(method).__name__}.build gave {who} for {site}; it returns a '
                'mmpetl.core.Delta'
            )
        _check_acts(type(delta))
        for name, value in vars(delta).items():
            if name not in _OF_TORCH and _hides(value):
                raise PETLError(
                    f'{who}.{name} is a {type(value).__name__} that holds modules or '
                    'parameters, which torch neither trains nor saves; take '
                    'nn.ModuleList, nn.ModuleDict or nn.ParameterList'
                )


_OF_TORCH = frozenset(vars(nn.Module()))


def _hides(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value
    return isinstance(value, dict | list | tuple) and any(
        isinstance(part, nn.Module | nn.Parameter) for part in parts
    )


@cache
def _check_acts(cls: type[Delta]) -> None:
    """Refuse a delta without a port, or one that cannot be called as ports are."""
    same = [getattr(cls, port) is getattr(Delta, port) for port in PORTS]
    if all(same) and cls is not Delta:  # that one says of itself that it does nothing
        raise PETLError(
            f'{cls.__name__} overrides neither `before` nor `after`, so that it does '
            'nothing (`forward` is never called)'
        )
    for port, names in PORTS.items():
        signature = inspect.signature(getattr(cls, port))
        try:
            signature.bind(None, *names)
        except TypeError:
            raise PETLError(
                f'{cls.__name__}.{port} takes {signature}; it is called as '
                f'{port}({", ".join(names)})'
            ) from None


def _check_ports(method: Method, deltas: Mapping[Site, Delta]) -> None:
    for site, delta in deltas.items():
        if type(delta).before is Delta.before:
            continue
        if site.kind in AFTER_ONLY:
            raise PETLError(
                f'{type(method).__name__} overrides `before` at {site}, which shares '
                'its input with two others; plug it into attn.qkv'
            )
        if site.kind in LEAF_KINDS:
            raise PETLError(
                f'{type(method).__name__} overrides `before` at {site}; a layer that '
                'no file describes has `after` only'
            )


def _plug(
    module: nn.Module,
    site_map: SiteMap,
    name: str,
    slot: Slot,
    deltas: Mapping[Site, Delta],
    shared: nn.Module | None,
    dtype: torch.dtype | None,
) -> None:
    like = next(module.parameters())
    if dtype is None:
        floating = like.dtype if like.is_floating_point() else torch.float32
        dtype = torch.promote_types(floating, torch.float32)
    if shared is not None:
        child_of(module, 'shared', nn.ModuleDict)[name] = shared
    for site, delta in deltas.items():
        plug_of(module, site)[name] = delta
    site_map.settle(module)
    for part in parts_of(module, name, slot).values():
        part.to(like.device, dtype)
    for delta in deltas.values():
        delta.attach(name, shared)


def _open_roles(module: nn.Module, record: Injection) -> list[Role]:
    """Roles of the base parameters that a method may select."""
    return [
        role
        for role in record.site_map.roles(module)
        if role.name in record.trainable_before and role.name not in record.head
    ]


def _selected(method: Method, module: nn.Module, roles: list[Role]) -> frozenset[str]:
    if len(inspect.signature(method.selects).parameters) == 3:
        warnings.warn(
            f'{type(method).__name__}.selects(name, param, owner) is deprecated; '
            'write selects(role)',
            DeprecationWarning,
            stacklevel=4,
        )
        owners = {role: role.name.rpartition('.')[0] for role in roles}
        return frozenset(
            role.name
            for role, path in owners.items()
            if method.selects(
                role.name, module.get_parameter(role.name), module.get_submodule(path)
            )
        )
    return frozenset(method.select(roles))


def _weights_behind(
    module: nn.Module, site_map: SiteMap, sites: Iterable[Site]
) -> frozenset[str]:
    """Names of the parameters that hold the base weights of sites."""
    views = (w for site in sites for w in site_map.affine(module, site).weights)
    held = {id(w if isinstance(w, nn.Parameter) else w._base) for w in views}
    return frozenset(n for n, param in module.named_parameters() if id(param) in held)


def _restores(module: nn.Module, record: Injection, selected: frozenset[str]) -> bool:
    sizes = {n: p.numel() for n, p in module.named_parameters() if n in record.base}
    chosen = sum(size for name, size in sizes.items() if name in selected)
    return chosen <= KEEP_AT_MOST * sum(sizes.values())


def _keep_base(module: nn.Module, record: Injection, slot: Slot) -> None:
    """Copy the base's values of what a slot selects, where they are still shown."""
    for name in slot.selected if slot.restores else ():
        if name not in record.originals and record.holder(name) is None:
            record.originals[name] = tensor_of(module, name).detach().clone()


__getattr__, __dir__ = moved_names(
    __name__,
    {
        'disable': 'mmpetl.core.slots',
        'eject': 'mmpetl.core.slots',
        'enable': 'mmpetl.core.slots',
        'find_injected': 'mmpetl.core.injection',
        'injection_of': 'mmpetl.core.injection',
    },
)
