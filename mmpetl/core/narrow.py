"""Which model, map and sites an injection is about: layers, blocks, sizes by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.affine import in_rows
from mmpetl.core.errors import PETLError, shorten
from mmpetl.core.injection import injections, record_of
from mmpetl.core.leaf_map import LeafMap, layer_facts, layers_of
from mmpetl.core.leaves import check_weights, foreign_class, leaf_of, pads_itself
from mmpetl.core.method import Method, registered_methods
from mmpetl.core.packed import PackedWeight
from mmpetl.core.patterns import as_blocks, as_patterns, in_short, matches, nearest
from mmpetl.core.places import run_once
from mmpetl.core.role import Role
from mmpetl.core.site import PROJECTIONS, Site
from mmpetl.core.sitemap import (
    CONVOLUTIONS,
    SiteMap,
    class_name,
    site_map_of,
    why_unknown,
)
from mmpetl.core.stack import is_plain

Names = Mapping[Site, tuple[str, ...]]


@dataclass(frozen=True)
class Where:
    """Which part of a model a slot is about; None means all of it.

    Attributes:
        layers: Patterns over dotted paths.
        blocks: Indices of blocks.
    """

    layers: tuple[str, ...] | None = None
    blocks: tuple[int, ...] | None = None

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self.layers is None and self.blocks is None


# ------------------------------------------------------------------- which map


def locate(
    backbone: nn.Module, method: Method, is_named: bool, is_placed: bool = False
) -> tuple[nn.Module, SiteMap]:
    """The module that holds the sites and its map; that of layers where none is.

    Args:
        backbone: Any model.
        method: What is to be injected.
        is_named: Whether layers or blocks are named, so that the model itself is meant.
        is_placed: Whether places are named, so that the method needs no description.

    Raises:
        PETLError: The model is wrapped, holds the backbone that is meant, or the method
            needs a described one.
    """
    record = record_of(backbone)
    if record is not None:
        if isinstance(record.site_map, LeafMap) and not is_placed:
            _check_on_any(backbone, method)
        return backbone, record.site_map
    free = is_named or not method.plugs()
    site_map = site_map_of(backbone)
    if site_map is not None:
        inner = site_map.core(backbone)
        if inner is not backbone:
            return locate(inner, method, is_named, is_placed)
        try:
            site_map.check(backbone)
        except PETLError:
            # The variant is not described; leaves need no description.
            if not (free and type(method).on_any_model()):
                raise
            return backbone, LeafMap(backbone)
        return backbone, site_map
    return backbone, _leaf_map(backbone, method, is_named, is_placed)


def _leaf_map(
    model: nn.Module, method: Method, is_named: bool, is_placed: bool
) -> LeafMap:
    why = why_unknown(model)
    wrapped = any(
        isinstance(getattr(model, name, None), nn.Module)
        for name in ('module', '_orig_mod')
    )
    holds = 'but holds one' in why or 'is no backbone; build' in why
    inherits = 'is a subclass of' in why and method.plugs()
    if wrapped or ((holds or inherits) and not is_named):
        raise PETLError(why)
    for path, _, _ in injections(model):
        raise PETLError(
            f'{class_name(type(model))} holds a backbone with a method at {path!r}; '
            f'inject into model.{path}, or eject that first'
        )
    if leaf_of(model) or not any(True for _ in model.parameters()):
        raise PETLError(
            f'a {type(model).__name__} is a single layer; inject into the model that '
            'holds it, and name it: layers=PATH'
        )
    if not is_placed:
        _check_on_any(model, method)
    return LeafMap(model)


def _check_on_any(model: nn.Module, method: Method) -> None:
    if type(method).on_any_model():
        return
    able = sorted(n for n, m in registered_methods().items() if m.on_any_model())
    places = (
        f" Or name places: places={{{method.targets[0]!r}: '*.PATTERN'}}, example=x."
        if method.placed is not None
        else ''
    )
    kinds = (*method.targets, *method.optional)
    where = f'acts at {kinds[0]!r}' if kinds else 'reads places inside of blocks'
    record = record_of(model)
    cls = type(model) if record is None else record.site_map.host
    raise PETLError(
        f'{type(method).__name__} {where}, and no site map describes '
        f'{cls.__module__}.{cls.__name__}. On any model: {", ".join(able)}. '
        'CONTRIBUTING.md shows how to describe a model in one file of mmpetl/backbones.'
        f'{places}'
    )


# ---------------------------------------------------------------------- narrow


def as_where(layers: Any, blocks: Any, sites: Sequence[Site]) -> Where:
    """What is asked for, checked.

    Raises:
        PETLError: It is malformed, or there is no such block.
    """
    count = max((site.num_blocks for site in sites), default=0)
    return Where(as_patterns(layers), as_blocks(blocks, count))


def site_names(module: nn.Module, site_map: SiteMap, sites: Sequence[Site]) -> Names:
    """What each site is called: its host, its kind there, the module of its weight.

    ``blocks.0`` and ``blocks.0.attn.q``, and ``blocks.0.attn.qkv`` where the query rows
    lie there. A layer of an undescribed model has its path alone.
    """
    if isinstance(site_map, LeafMap):
        return {site: (site.host,) for site in sites}
    with _readable(module, site_map):
        return dict(_names(module, site_map, sites))


@contextmanager
def _readable(module: nn.Module, site_map: SiteMap) -> Iterator[None]:
    """Let maps of sites be views of weights, which tell by their address whose.

    A weight in few bits has no address: another stands in its place, and is not read.
    """
    packed = [
        (part, name, param)
        for part in module.modules()
        for name, param in part._parameters.items()
        if isinstance(param, PackedWeight)
    ]
    swapped = record_of(module) is not None
    if not swapped:
        site_map.swap(module)
    try:
        for part, name, param in packed:
            empty = torch.empty(param.shape, dtype=param.dtype)
            part._parameters[name] = nn.Parameter(empty, requires_grad=False)
        with in_rows(module):
            yield
    finally:
        for part, name, param in packed:
            part._parameters[name] = param
        if not swapped:
            site_map.unswap(module)


def _names(
    module: nn.Module, site_map: SiteMap, sites: Sequence[Site]
) -> Iterator[tuple[Site, tuple[str, ...]]]:
    homes = {
        p.untyped_storage().data_ptr(): name.rpartition('.')[0]
        for name, p in module.named_parameters()
        if not p.is_meta
    }
    for site in sites:
        names = [site.host, f'{site.host}.{site.kind}'.lstrip('.')]
        try:
            affine = site_map.affine(module, site)
        except PETLError:  # no weight stands behind it
            affine = None
        for tensor in () if affine is None else affine.weights:
            home = homes.get(tensor.untyped_storage().data_ptr())
            if home is not None and home not in names:
                names.append(home)
        yield site, tuple(n for n in names if n)


def linear_rows(
    module: nn.Module,
    site_map: SiteMap,
    sites: Sequence[Site],
    convolutions: bool = False,
) -> dict[str, dict[Site, tuple[int, int]]]:
    """Sites whose weights lie in one called Linear, by its path, with their rows there.

    A Linear whose weight alone is read, as in ``nn.MultiheadAttention`` and where a
    module adds a bias of its own, is not called. The queries of a fused projection are
    its first rows, and ``attn.qkv`` all of them; where queries, keys and values are
    three Linears, ``attn.qkv`` is in none.

    Args:
        module: The model or trunk, with or without deltas.
        site_map: Its map.
        sites: Those that are asked about.
        convolutions: Whether those count too which :func:`why_no_pair` has nothing
            against.
    """
    with _readable(module, site_map):
        return _linear_rows(module, site_map, sites, convolutions)


def why_no_pair(conv: nn.Module) -> str:
    """Why two convolutions in a row are no change of this one's weight; else empty.

    The first has its class, kernel, stride and number of zeros around, and no more, and
    sees all channels; the second sees one place.
    """
    if not isinstance(conv, CONVOLUTIONS):
        return 'it is no convolution'
    if conv.transposed or not is_plain(foreign_class(conv)):
        return f'{foreign_class(conv).__name__} has a forward pass of its own'
    if conv.groups > 1:
        return f'it has {conv.groups} groups'
    if set(conv.dilation) != {1}:
        return f'it is dilated by {max(conv.dilation)}'
    return 'it pads by itself' if pads_itself(conv) else ''


def rows_of(layer: nn.Module) -> int:
    """Rows of a Linear's weight, or of a convolution's."""
    return layer.weight.shape[0]


def _linear_rows(
    module: nn.Module, site_map: SiteMap, sites: Sequence[Site], convolutions: bool
) -> dict[str, dict[Site, tuple[int, int]]]:
    parts = dict(module.named_modules())
    linears = {
        path: part
        for path, part in parts.items()
        if (isinstance(part, nn.Linear) or (convolutions and not why_no_pair(part)))
        and 'petl' not in path.split('.')
        and not isinstance(parts[path.rpartition('.')[0]], nn.MultiheadAttention)
    }
    found: dict[str, dict[Site, tuple[int, int]]] = {}
    for site in sites:
        if site.kind in ('layer.linear', 'layer.conv'):
            if site.host in linears:
                found.setdefault(site.host, {})[site] = 0, site.out_dims
            continue
        if site.kind not in PROJECTIONS or isinstance(site_map, LeafMap):
            continue  # what nn.MultiheadAttention reads is called by nobody
        affine = site_map.affine(module, site)
        weights = affine.weights
        biases = [part.bias for part in affine.bias if part.bias is not None]
        for path, part in linears.items() if len(weights) == 1 else ():
            if any(not _shares(bias, part.bias) for bias in biases):
                continue
            step = part.weight.stride(0) * part.weight.element_size()
            start, off = divmod(weights[0].data_ptr() - part.weight.data_ptr(), step)
            if not off and 0 <= start < rows_of(part):
                found.setdefault(path, {})[site] = start, start + len(weights[0])
    return found


def _shares(view: Tensor, owner: Tensor | None) -> bool:
    """Whether a tensor lies in the memory of another."""
    if owner is None:
        return False
    return view.untyped_storage().data_ptr() == owner.untyped_storage().data_ptr()


def narrowed(
    method: Method, where: Where, wanted: Sequence[Site], names: Names
) -> list[Site]:
    """The wanted sites that lie in the layers and blocks that are named.

    Raises:
        PETLError: The method's deltas work together, so none can be left out.
    """
    if where.is_all:
        return list(wanted)
    if wanted and not method.apart:
        raise PETLError(
            f'the deltas of {type(method).__name__} work together, so it takes no '
            'layers and no blocks; leave them out, or see its own arguments'
        )
    return [
        site
        for site in wanted
        if (where.blocks is None or site.block in where.blocks)
        and (where.layers is None or matches(where.layers, names[site]))
    ]


def narrowed_roles(where: Where, roles: Sequence[Role]) -> list[Role]:
    """The roles in the layers and blocks that are named."""
    return [
        role
        for role in roles
        if (where.blocks is None or role.block in where.blocks)
        and (where.layers is None or matches(where.layers, _role_names(role.name)))
    ]


def _role_names(name: str) -> tuple[str, ...]:
    """A parameter's name and the path of its module."""
    return name, name.rpartition('.')[0]


def check_found(
    module: nn.Module,
    site_map: SiteMap,
    method: Method,
    where: Where,
    chosen: Sequence[Site],
    wanted: Sequence[Site],
    names: Names,
    selected: Set[str],
    every: Set[str],
) -> None:
    """Stop where a pattern means nothing that the method acts on, or nothing trains.

    Args:
        module: The model.
        site_map: Its map.
        method: The method.
        where: What is named.
        chosen: Sites that are left.
        wanted: All sites that the method wants.
        names: Of these.
        selected: Base parameters that it selects there.
        every: Base parameters that it would select without ``where``.

    Raises:
        PETLError: A pattern matches none, or nothing is left.
    """
    groups = [names.get(site, (site.host,)) for site in wanted]
    groups += [_role_names(name) for name in sorted(every)]
    known = list(dict.fromkeys(n for group in groups for n in group))
    who = type(method).__name__
    for pattern in where.layers or ():
        if any(matches((pattern.removeprefix('!'),), group) for group in groups):
            continue
        raise PETLError(_why_none(module, site_map, who, pattern, known))
    if chosen or selected:
        return
    if where.is_all and (method.plugs() or type(method).selects is not Method.selects):
        raise PETLError(
            f'{who} finds nothing to train in {class_name(site_map.host)}; '
            '`python -m mmpetl.layers` lists its layers'
        )
    if not where.is_all:
        raise PETLError(
            f'no layer of {class_name(site_map.host)} is left for {who} with '
            f'layers={where.layers!r} and blocks={where.blocks!r}; it acts at '
            f'{_short(known)}'
        )


def _why_none(
    module: nn.Module, site_map: SiteMap, who: str, pattern: str, known: list[str]
) -> str:
    plain = pattern.removeprefix('!')
    layers = {path: (part, leaf) for path, part, leaf in layers_of(module)}
    for path, (part, leaf) in layers.items():
        if not matches((plain,), (path,)) or path in known:
            continue
        if isinstance(leaf, str):
            return f'{path} ({layer_facts(part)}) cannot be swapped: {leaf}'
        if isinstance(site_map, LeafMap) and site_map.in_head(path):
            return f'{path} belongs to the head, which trains as it is'
        return (
            f'{who} does not act at {path} ({layer_facts(part)}), which {pattern!r} '
            f'matches; it acts at {_short(known)}'
        )
    acts = f' {who} acts at {_short(known)}' if known else ''
    return (
        f'no layer of {class_name(site_map.host)} matches {pattern!r}.'
        f'{nearest(plain, [*layers, *known])}{acts}; `python -m mmpetl.layers` lists '
        'them'
    )


def _short(names: list[str]) -> str:
    rows = [f'{name} ({n})' if n > 1 else name for name, _, n in in_short(names)]
    return shorten(rows, 4) or 'no layer'


# ------------------------------------------------------------- sizes by layer


def per_site(method: Method, sites: Sequence[Site], names: Names) -> dict[Site, Method]:
    """The method as it is at each site; its arguments are checked there.

    Raises:
        PETLError: An argument by layer is missing for one, matches none, or misfits.
    """
    if not method.differs:
        return dict.fromkeys(sites, method)
    found = {site: method.at(names[site]) for site in sites}
    for name in method.sized:
        table = getattr(method, name)
        for pattern in table if isinstance(table, Mapping) else ():
            if not any(matches((pattern,), names[site]) for site in sites):
                known = [n for site in sites for n in names[site]]
                raise PETLError(
                    f'{name} of {type(method).__name__} names {pattern!r}, which '
                    f'matches no layer that it acts at.{nearest(pattern, known)} '
                    f'It acts at {_short(list(dict.fromkeys(known)))}'
                )
    groups: dict[str, list[Site]] = {}
    for site, one in found.items():
        groups.setdefault(repr(one), []).append(site)
    for members in groups.values():
        found[members[0]].check(members)
    return found


def check_reached(module: nn.Module, sites: Iterable[Site], example: Any) -> None:
    """Run the model once and name the layers that it does not call.

    Args:
        module: The model, not yet swapped.
        sites: What must be reached.
        example: Its input: one value, a tuple of arguments, or a dict of them.

    Raises:
        PETLError: A layer is not called.
    """
    hosts = {s.host: module.get_submodule(s.host) for s in sites if s.host}
    called: set[str] = set()
    handles = [
        part.register_forward_hook(lambda *_, path=path: called.add(path))
        for path, part in hosts.items()
    ]
    try:
        run_once(module, example)
    finally:
        for handle in handles:
            handle.remove()
    _refuse_unreached([path for path in hosts if path not in called])


def unreached(model: nn.Module) -> list[str]:
    """Layers whose deltas got no gradient; to be asked after a backward pass."""
    found = []
    for prefix, module, record in injections(model):
        for name, slot in record.slots.items():
            for site in slot.sites if slot.enabled and not slot.frozen else ():
                delta = module.get_submodule(f'{site.path}.{name}')
                params = [p for p in delta.parameters() if p.requires_grad]
                if params and all(p.grad is None for p in params):
                    found.append(f'{prefix}.{site.host}'.strip('.'))
    return list(dict.fromkeys(found))


def check_trained(model: nn.Module) -> None:
    """Stop where a layer's deltas got no gradient; call it after ``backward()``.

    Raises:
        PETLError: The pass did not call these layers, or used their weights only.
    """
    _refuse_unreached(unreached(model))


class GradientWatch:
    """Knows which layers' deltas get a gradient, whatever becomes of it afterwards.

    Args:
        model: A model that holds methods; only layers that no file describes count.
    """

    def __init__(self, model: nn.Module) -> None:
        self._silent: set[str] = set()
        self._handles: list[Any] = []
        for prefix, module, record in injections(model):
            if not isinstance(record.site_map, LeafMap):
                continue
            for name, slot in record.slots.items():
                for site in slot.sites if slot.enabled and not slot.frozen else ():
                    delta = module.get_submodule(f'{site.path}.{name}')
                    self._await(f'{prefix}.{site.host}'.strip('.'), delta)

    def _await(self, path: str, delta: nn.Module) -> None:
        def heard(_: Tensor) -> None:
            self._silent.discard(path)

        for param in delta.parameters():
            if param.requires_grad:
                self._silent.add(path)
                self._handles.append(param.register_hook(heard))

    def check(self) -> None:
        """Stop watching.

        Raises:
            PETLError: A layer has got no gradient since.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _refuse_unreached(sorted(self._silent))


def _refuse_unreached(paths: list[str]) -> None:
    if paths:
        raise PETLError(
            f'{len(paths)} of the chosen layers are not reached by a pass '
            f'({_short(paths)}): the model does not call them, or reads their weights '
            f"only; leave them out, as in layers=['*', '!{paths[0]}']"
        )


def check_hosts_plain(module: nn.Module, sites: Iterable[Site]) -> None:
    """Refuse layers whose weights are computed in each pass.

    Raises:
        PETLError: One of the hosts is under a parametrization.
    """
    for path in dict.fromkeys(site.host for site in sites):
        if path:
            check_weights(path, module.get_submodule(path))
