"""Site maps: what one backbone class offers, and how its instances are swapped."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from mmpetl.core.affine import Affine
from mmpetl.core.errors import PETLError
from mmpetl.core.role import Kind, Place, Role
from mmpetl.core.site import KINDS, Site
from mmpetl.registry import BACKBONES


class SiteMap:
    """Base of the descriptions in ``mmpetl/backbones``, one file per backbone class.

    A description names the foreign class it serves, gives the swapped classes, lists
    the sites, and tells the role of each parameter.

    Attributes:
        host: The foreign backbone class.
        host_block: The foreign block class.
        head: Path prefixes of task heads inside of the backbone; they always train.
        head_dropout: Paths of the dropout in front of them, which trains with them.
        swapped: Subclass of ``(BackboneHost, host)``, called ``PETL`` and the name of
            ``host``: code of other libraries reads class names.
        swapped_block: Subclass of ``(BlockHost, host_block)``, likewise.
        blocks_served: Swapped class by foreign class, for all that :meth:`blocks` and
            :meth:`inner_hosts` give; where there is one class of blocks, the pair
            ``host_block`` and ``swapped_block`` says it.
        holders: Foreign classes with a ``host`` in them, as a classifier of the same
            package, and its path there; :meth:`core` finds it.
        absent: Why the trunk has no site of a kind, by kind, as one clause
            (``'keys and values come from a reduced map'``); refusals print it.
        flat: Why the features of blocks lie on no grid, as one clause; empty where they
            do.
        parts: Classes that a part of a block may have, by its path in the block. The
            algebra of a swapped block is that of these classes and of no other.
        outer_parts: Likewise for parts outside of blocks, by their path in the
            backbone.
        own_forward: Whether the backbone runs its own forward pass, which only its
            layers leave.
        unused: Patterns (``fnmatch``) of parts that no forward pass reads. Nothing
            could train them, so they have no role.
        instead: What to build in place of a class that pre-trains on masked images and
            is no backbone, by the name of that class.
        biases: Last names of additive bias vectors.
        mixers: Last names of modules of one place each that take part in mixing, and
            stand behind no site.
        weights: Last names of weights of linear maps and convolutions.
        positions: Last names of absolute position tables.
        position_biases: Last names of relative position tables.
        tokens: Last names of learned tokens.
        scales: Last names of layer scales, or the name of the module that holds one.
    """

    host: type[nn.Module]
    host_block: type[nn.Module]
    head: tuple[str, ...] = ()
    head_dropout: tuple[str, ...] = ()
    swapped: type[nn.Module]
    swapped_block: type[nn.Module]
    blocks_served: dict[type[nn.Module], type[nn.Module]] = {}
    holders: dict[type[nn.Module], str] = {}
    absent: dict[str, str] = {}
    flat: str = ''
    parts: dict[str, tuple[type[nn.Module], ...]] = {}
    outer_parts: dict[str, tuple[type[nn.Module], ...]] = {}
    own_forward: bool = False
    unused: tuple[str, ...] = ()
    instead: dict[str, str] = {}
    biases: tuple[str, ...] = ('bias',)
    mixers: tuple[str, ...] = ()
    weights: tuple[str, ...] = ('weight',)
    positions: tuple[str, ...] = ('pos_embed',)
    position_biases: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ('cls_token',)
    scales: tuple[str, ...] = ()

    def example(self) -> nn.Module:
        """An instance of the size that papers use, for the support grid and counts."""
        raise NotImplementedError

    def core(self, backbone: nn.Module) -> nn.Module:
        """The module that holds the blocks; a wrapper returns what it wraps."""
        path = self.holders.get(type(backbone), '')
        return backbone.get_submodule(path)

    def blocks(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Path and module of every block, in the order of the forward pass."""
        raise NotImplementedError

    def inner_hosts(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Path and module of hosts that are no whole blocks.

        One of two attentions of a block, say.
        """
        return iter(())

    def served(self) -> dict[type[nn.Module], type[nn.Module]]:
        """Swapped class by foreign class, of blocks and inner hosts."""
        return self.blocks_served or {self.host_block: self.swapped_block}

    def hosts(self, backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Every module below the backbone that runs sites."""
        yield from self.blocks(backbone)
        yield from self.inner_hosts(backbone)

    def sites(self, backbone: nn.Module) -> list[Site]:
        """Every site of this backbone, in the order of the forward pass."""
        raise NotImplementedError

    def sites_of(self, backbone: nn.Module) -> list[Site]:
        """:meth:`sites` of this very instance, which may be handed frames of clips."""
        sites, frames = self.sites(backbone), getattr(backbone, 'clip_frames', 1)
        if frames == 1:
            return sites
        return [replace(site, frames=frames) for site in sites]

    def why_absent(self, backbone: nn.Module, kind: str) -> str | None:
        """Why this backbone has no site of a kind, as one clause, if it is known."""
        return self.absent.get(kind)

    def outer_modules(self, backbone: nn.Module) -> dict[str, nn.Module]:
        """Modules behind the sites that lie outside of blocks, by :attr:`Site.key`."""
        raise NotImplementedError

    def affine(self, backbone: nn.Module, site: Site) -> Affine:
        """The base weights behind a site of a swapped backbone.

        Raises:
            PETLError: The site is no affine map.
        """
        found = None
        if site.block is not None:
            found = backbone.get_submodule(site.host).affine(str(site), site.kind)
        else:
            module = self.outer_modules(backbone).get(site.key)
            if getattr(module, 'weight', None) is not None:
                bias = getattr(module, 'bias', None)
                eps = getattr(module, 'eps', None)
                found = Affine.of(str(site), module.weight, bias, eps)
        if found is None:
            raise PETLError(
                f'{site} is no affine map with weights, so nothing can be read from it '
                'or folded into it'
            )
        return found

    def affine_at(
        self,
        backbone: nn.Module,
        sites: Iterable[Site],
        host: str,
        kind: str,
        index: int | None = None,
    ) -> Affine:
        """The base weights of a kind in a host.

        The rows of queries, keys and values are one map of a block also where it has
        no site ``attn.qkv``, their inputs not being the same.
        """
        inside = [site for site in sites if site.host == host]
        for site in inside:
            if site.kind == kind and index in (None, site.index):
                return self.affine(backbone, site)
        return self.affine(backbone, replace(inside[0], kind=kind))

    def roles(self, backbone: nn.Module) -> list[Role]:
        """The role of every used parameter of a backbone, before or after its swap."""
        sites = self.sites(backbone)
        stages = {site.block: site.stage for site in sites if site.block is not None}
        blocks = [
            (path, i, stages[i]) for i, (path, _) in enumerate(self.blocks(backbone))
        ]
        outside: dict[int, Site] = {}
        modules = self.outer_modules(backbone)
        for site in sites:
            module = modules.get(site.key) if site.block is None else None
            if module is not None:
                outside[id(module)] = site
        owners = dict(backbone.named_modules())
        roles = []
        for name, param in backbone.named_parameters():
            if 'petl' in name.split('.') or self.is_unused(name):
                continue
            path, _, last = name.rpartition('.')
            block, stage, place = None, None, ''
            site = outside.get(id(owners[path]))
            if self.in_head(name):
                place = 'head'
            elif site is not None:
                stage = site.stage
                place = PLACES[site.kind.partition('.')[0]]
                if site.in_stream:
                    place = 'merging'
            else:
                inside = (b for b in blocks if name.startswith(f'{b[0]}.'))
                found = next(inside, None)
                if found is not None:
                    (_, block, stage), place = found, 'block'
            kind = self._kind(name, owners[path], place, blocks)
            part = 'bias' if last in self.biases else 'weight'
            if kind not in TWO_PARTS:
                part = ''
            norm = norm_family(owners[path]) if 'norm' in kind else ''
            roles.append(
                Role(name, tuple(param.shape), kind, part, place, block, stage, norm)
            )
        return roles

    def _kind(
        self, name: str, owner: nn.Module, place: Place, blocks: list[tuple]
    ) -> Kind:
        *path, last = name.split('.')
        if place == 'head':
            return 'head'
        for kind, names in (
            ('position', self.positions),
            ('position_bias', self.position_biases),
            ('token', self.tokens),
        ):
            if last in names:
                return kind
        if last in self.scales or (path and path[-1] in self.scales):
            return 'scale'
        if is_norm(owner):
            if place == 'block':
                in_block = '.'.join(path[:-1]) in {b[0] for b in blocks}
                return 'norm' if in_block else 'inner_norm'
            return 'final_norm' if place == 'out' else 'norm'
        if last in self.biases or last in self.weights:
            # What makes patches is an affine map of them, behind a site.
            inside = place in ('block', '') and _mixes(owner)
            named = bool(path) and path[-1] in self.mixers
            return 'mixer' if inside or named else 'projection'
        return 'other'

    def in_head(self, name: str) -> bool:
        """Whether a parameter belongs to a head inside of the backbone."""
        return any(is_below(name, prefix) for prefix in self.head)

    def head_dropouts(self, backbone: nn.Module) -> list[nn.Module]:
        """The dropout in front of heads, where there are some and all of them train."""
        heads = [p for n, p in backbone.named_parameters() if self.in_head(n)]
        if not heads or not all(p.requires_grad for p in heads):
            return []
        return [backbone.get_submodule(path) for path in self.head_dropout]

    def is_unused(self, name: str) -> bool:
        """Whether no forward pass reads a parameter."""
        return any(fnmatchcase(name, pattern) for pattern in self.unused)

    def check(self, backbone: nn.Module) -> None:
        """Refuse variants of the class whose forward pass differs.

        Called before anything else is asked or changed. A description that overrides
        it calls it first.
        """
        served = self.served()
        for path, block in self.hosts(backbone):
            if type(block) not in (*served, *served.values()):
                known = ' and '.join(cls.__name__ for cls in served)
                raise PETLError(
                    f'{path} is a {class_name(type(block))}; the site map of '
                    f'{class_name(self.host)} describes blocks of class {known}'
                )
        for path, block in self.blocks(backbone):
            for part, classes in self.parts.items():
                self.check_class(f'{path}.{part}', block.get_submodule(part), classes)
        for path, classes in self.outer_parts.items():
            self.check_class(path, backbone.get_submodule(path), classes)

    def check_outputs(self, backbone: nn.Module) -> None:
        """Refuse outputs that are counted from the end, where upstream gives none."""
        taken = tuple(getattr(backbone, 'out_indices', ()))
        if any(i < 0 for i in taken):
            raise PETLError(
                f'out_indices {taken} count from the end, which upstream takes for no '
                'output at all; count them from 0'
            )

    def check_class(
        self, path: str, module: nn.Module, classes: tuple[type[nn.Module], ...]
    ) -> None:
        """Refuse a part of a class that the description does not know."""
        if type(module) not in classes:
            raise PETLError(
                f'{path} is a {class_name(type(module))}; the site map of '
                f'{class_name(self.host)} knows '
                f'{" and ".join(dict.fromkeys(c.__name__ for c in classes))} there'
            )
        if isinstance(module, CONVOLUTIONS):
            plain = set(module.dilation) == {1} and module.groups == 1
            plain &= module.padding_mode == 'zeros'
            if not plain or isinstance(module.padding, str):
                raise PETLError(
                    f'{path} is dilated, grouped or padded in a way of its own; the '
                    f'site map of {class_name(self.host)} knows plain patches'
                )

    def swap(self, backbone: nn.Module) -> None:
        """Change the classes of the backbone and its blocks."""
        served = self.served()
        for _, block in self.hosts(backbone):
            block.__class__ = served[type(block)]
        backbone.__class__ = self.swapped

    def settle(self, backbone: nn.Module) -> None:
        """Called when deltas have come or gone, for maps that swap parts as needed."""

    def unswap(self, backbone: nn.Module) -> None:
        """Give every instance its own class back."""
        plain = {swapped: cls for cls, swapped in self.served().items()}
        for _, block in self.hosts(backbone):
            block.__class__ = plain[type(block)]
        backbone.__class__ = self.host

    def convert(
        self, backbone: nn.Module, state: dict[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """Weights of an official file in the names of the host class.

        Asked by ``load_base_weights`` where a file does not bear the model's own names.
        A description overrides it to serve a naming that
        ``mmpetl/models/weights/convert.py`` does not know. What it returns is held
        against the model in full: it renames what it knows, passes the rest on, and
        need not resize position tables.

        Args:
            backbone: The plain backbone that is to be filled.
            state: The file's tensors by name, whatever path they bear.

        Returns:
            Tensors by the backbone's names, None for a naming that is not its.
        """
        return None


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

TWO_PARTS = ('projection', 'mixer', 'norm', 'inner_norm', 'final_norm', 'head')
"""Kinds of roles whose parameters are weights or biases."""

PLACES: dict[str, Place] = {'embed': 'embed', 'downsample': 'merging', 'out': 'out'}
"""Where a parameter stands whose module is behind a site outside of blocks."""


def _mixes(module: nn.Module) -> bool:
    """Whether a module is a convolution over more than one place."""
    return isinstance(module, CONVOLUTIONS) and module.weight[0, 0].numel() > 1


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises and scales, as LayerNorm, RMSNorm and BatchNorm."""
    return any('Norm' in cls.__name__ for cls in type(module).__mro__)


NORM_FAMILIES = ('layer', 'batch', 'group', 'instance', 'rms')


def norm_family(module: nn.Module) -> str:
    """One of :data:`NORM_FAMILIES` by the names of a norm's classes, or empty."""
    for cls in type(module).__mro__:
        for family in NORM_FAMILIES:
            if f'{family}norm' in cls.__name__.lower():
                return family
    return ''


def is_below(name: str, prefix: str) -> bool:
    """Whether a dotted name is ``prefix`` or lies below it."""
    return name == prefix or name.startswith(f'{prefix}.')


def class_name(cls: type) -> str:
    """Package and class, ``mmpretrain.VisionTransformer``; packages share names."""
    return f'{cls.__module__.partition(".")[0]}.{cls.__name__}'


def block_sites(
    host: str,
    dims: int,
    mlp_dims: int,
    *,
    windowed: bool = False,
    proj_in_windows: bool = True,
    attn_dims: int | None = None,
    kv_dims: int | None = None,
    gated: bool = False,
    reduced_keys: bool = False,
    without: Iterable[str] = (),
    **facts: Any,
) -> list[Site]:
    """The sites of one block, in the order of its forward pass.

    Args:
        host: Path of the block.
        dims: Width of the stream.
        mlp_dims: Hidden width of the feed-forward network.
        windowed: Whether attention runs in windows, which have no grid.
        proj_in_windows: Whether its output projection does too.
        attn_dims: Width of the queries of all heads, ``dims`` by default.
        kv_dims: Width of keys and of values, ``attn_dims`` by default.
        gated: Whether ``ffn.fc1`` leaves a gate and a value.
        reduced_keys: Whether keys and values come from another map than the stream's;
            then there is no ``attn.qkv`` either.
        without: Kinds that this block has no place for; ``'attn'`` stands for all of
            attention.
        facts: Further fields of :class:`Site`, the same for all.
    """
    d, m = dims, mlp_dims
    a = d if attn_dims is None else attn_dims
    kv = a if kv_dims is None else kv_dims
    inside = not windowed
    keys = inside and not reduced_keys
    without = set(without) | ({'attn.qkv'} if reduced_keys else set())
    if 'attn' in without:
        without |= {kind for kind in KINDS if kind.startswith('attn.')} | {'norm1'}
    layout = (
        ('tokens', d, d, True),
        ('block', d, d, True),
        ('norm1', d, d, True),
        ('attn', d, d, True),
        ('attn.qkv', d, a + 2 * kv, inside),
        ('attn.q', d, a, inside),
        ('attn.k', d, kv, keys),
        ('attn.v', d, kv, keys),
        ('attn.core', a, a, False),
        ('attn.proj', a, d, inside or not proj_in_windows),
        ('attn.branch', d, d, True),
        ('attn.skip', d, d, True),
        ('attn.sum', d, d, True),
        ('norm2', d, d, True),
        ('ffn', d, d, True),
        ('ffn.fc1', d, 2 * m if gated else m, True),
        ('ffn.fc2', m, d, True),
        ('ffn.branch', d, d, True),
        ('ffn.skip', d, d, True),
        ('ffn.sum', d, d, True),
    )
    return [
        Site(
            kind,
            host,
            i,
            o,
            has_grid=grid,
            mlp_dims=m,
            gated=gated and kind == 'ffn.fc1',
            **facts,
        )
        for kind, i, o, grid in layout
        if kind not in without
    ]


@functools.cache
def _descriptions() -> tuple[str, ...]:
    """Stems of the files of ``mmpetl/backbones``; a folder there holds shared code."""
    package = importlib.import_module('mmpetl.backbones')
    modules = pkgutil.iter_modules(package.__path__)
    return tuple(info.name for info in modules if not info.ispkg)


def _load_descriptions(module: nn.Module) -> list[SiteMap]:
    """The descriptions whose file starts with a package that the module comes from.

    ``mmpretrain_vit.py`` is read when an mmpretrain backbone asks, and not before:
    importing an OpenMMLab package takes seconds.
    """
    roots = {cls.__module__.partition('.')[0] for cls in type(module).__mro__}
    roots &= sys.modules.keys()
    for stem in _descriptions():
        if stem.partition('_')[0] in roots:
            importlib.import_module(f'mmpetl.backbones.{stem}')
    return [cls() for cls in dict.fromkeys(BACKBONES.module_dict.values())]


def site_map_of(backbone: nn.Module) -> SiteMap | None:
    """The site map that describes a backbone, None where no file does.

    An injected model keeps the one that it was injected with.
    """
    record = backbone.__dict__.get('_petl')
    if record is not None:
        return record.site_map
    for site_map in _load_descriptions(backbone):
        swapped = getattr(site_map, 'swapped', None)
        if type(backbone) in (site_map.host, swapped, *site_map.holders):
            return site_map
    return None


def find_site_map(backbone: nn.Module) -> SiteMap:
    """The site map that describes a backbone.

    Raises:
        PETLError: No file of ``mmpetl/backbones`` describes its class.
    """
    site_map = site_map_of(backbone)
    if site_map is None:
        raise PETLError(why_unknown(backbone))
    return site_map


def why_unknown(model: nn.Module) -> str:
    """Where to inject instead, or what is served."""
    name = class_name(type(model))
    for attribute in ('module', '_orig_mod'):
        if isinstance(getattr(model, attribute, None), nn.Module):
            return (
                f'{name} wraps a model; inject before it is wrapped, or into '
                f'model.{attribute}'
            )
    for site_map in _load_descriptions(model):
        if name in site_map.instead:
            return (
                f'{name} pre-trains on masked images and is no backbone; build '
                f'{site_map.instead[name]} and load the same file'
            )
    for path, part in model.named_modules():
        for site_map in _load_descriptions(part) if path else ():
            swapped = getattr(site_map, 'swapped', None)
            if type(part) in (site_map.host, swapped, *site_map.holders):
                return (
                    f'{name} is no backbone, but holds one: inject into model.{path} '
                    f'({class_name(type(part))})'
                )
    for site_map in _load_descriptions(model):
        if isinstance(model, site_map.host):
            return (
                f'{name} is a subclass of {class_name(site_map.host)}, whose forward '
                'pass may differ; describe it in a file of its own in mmpetl/backbones'
            )
    return (
        f'no site map for {type(model).__module__}.{type(model).__name__}; '
        f'described are {", ".join(_descriptions())}, and CONTRIBUTING.md shows how to '
        'add one file to mmpetl/backbones'
    )
