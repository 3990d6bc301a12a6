"""Joining a method and a backbone, and taking them apart again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.affine import Affine
from mmpetl.core.delta import Delta
from mmpetl.core.errors import PETLError
from mmpetl.core.host import Plug
from mmpetl.core.method import Method, build_method
from mmpetl.core.site import AFTER_ONLY, Site
from mmpetl.core.sitemap import SiteMap, find_site_map

# Base values are kept for `disable` and `eject` while a method selects at most this
# share of the base; beyond it a second copy of the model would be held.
KEEP_AT_MOST = 0.1


@dataclass
class Slot:
    """One method on one backbone."""

    method: Method
    sites: tuple[Site, ...]
    selected: frozenset[str]
    enabled: bool = True
    originals: dict[str, Tensor] | None = None
    """Values of the selected parameters before the method, None if too many."""


@dataclass
class Injection:
    """What a backbone knows of its methods; it stands at ``backbone._petl``."""

    site_map: SiteMap
    sites: tuple[Site, ...]
    base: frozenset[str]
    """Names of the parameters and buffers that the backbone had before."""
    trainable_before: frozenset[str]
    digests: dict[str, str]
    """Digest of every base parameter as it was when the first method came."""
    head: frozenset[str] = frozenset()
    """Base parameters that train with the head: the checkpoint did not hold them."""
    frozen_drop_path: bool = False
    training: bool = True
    """The mode that was asked for; a frozen backbone itself says ``training=False``."""
    slots: dict[str, Slot] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    """Where the base came from: its config, checkpoint and fingerprint."""

    def selected(self) -> frozenset[str]:
        """Base parameters that train: what enabled methods select, and the head's."""
        names: set[str] = set(self.head)
        for slot in self.slots.values():
            if slot.enabled:
                names |= slot.selected
        return frozenset(names)

    def set_trainable(self, backbone: nn.Module) -> None:
        """Set ``requires_grad`` of every parameter of the backbone by ownership."""
        selected = self.selected()
        disabled = [name for name, slot in self.slots.items() if not slot.enabled]
        off = tuple(
            f'{path}.{name}.'
            for name in disabled
            for path in ('petl.shared', *(s.path for s in self.slots[name].sites))
        )
        for name, param in backbone.named_parameters():
            if name in self.base:
                param.requires_grad_(name in selected)
            else:
                param.requires_grad_(not (off and name.startswith(off)))

    def apply_modes(self, backbone: nn.Module, mode: bool) -> None:
        """Put frozen modules in eval mode; called after the host's own ``train``.

        A module trains if all parameters below it train; one without parameters
        follows its parent, so that dropout runs in trained blocks only.
        """
        # A host with frozen stages clears requires_grad of all that lies in them.
        self.set_trainable(backbone)
        self.training = mode

        def visit(module: nn.Module, parent: bool) -> None:
            params = list(module.parameters())
            trains = all(p.requires_grad for p in params) if params else parent
            module.training = mode and trains
            if self.frozen_drop_path and type(module).__name__ == 'DropPath':
                module.training = mode
            for name, child in module.named_children():
                if name == 'petl':
                    child.train(mode)
                else:
                    visit(child, trains)

        visit(backbone, True)


def find_injected(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of every backbone below ``model`` that holds a method."""
    return [(n, m) for n, m in model.named_modules() if '_petl' in m.__dict__]


def core_of(backbone: nn.Module) -> nn.Module:
    """The module that holds the sites; a wrapper such as TIMMBackbone gives its own.

    Raises:
        PETLError: No site map describes the backbone.
    """
    if '_petl' in backbone.__dict__:
        return backbone
    inner = find_site_map(backbone).core(backbone)
    return inner if inner is backbone else core_of(inner)


def injection_of(backbone: nn.Module) -> tuple[nn.Module, Injection]:
    """The module that holds the sites and its record.

    Raises:
        PETLError: Nothing has been injected.
    """
    found = find_injected(backbone)
    if len(found) != 1:
        raise PETLError(
            f'{type(backbone).__name__} holds {len(found)} injected backbones; '
            'one is needed (mmpetl.inject(backbone, method) makes one)'
        )
    module = found[0][1]
    return module, module.__dict__['_petl']


def inject(
    backbone: nn.Module,
    method: Method | type[Method] | str | Mapping[str, Any],
    *,
    slot: str | None = None,
    head: Iterable[str] = (),
    frozen_drop_path: bool = False,
) -> nn.Module:
    """Plug a method into a backbone, in place, and freeze the rest.

    Args:
        backbone: A backbone that a file of ``mmpetl/backbones`` describes, with its
            weights loaded.
        method: A method, its name or its config.
        slot: Name of the place the method takes, by default the next number.
            Several methods may share one backbone.
        head: Path prefixes of base parameters that train like a head, because the
            checkpoint does not hold them (``fc_norm`` of a self-supervised VideoMAE).
        frozen_drop_path: Whether stochastic depth acts in the frozen trunk.

    Returns:
        The same object, still an instance of its class, no key renamed.

    Raises:
        PETLError: The backbone is not described, does not offer what the method
            needs, or holds this method already.
    """
    method = build_method(method)
    module = core_of(backbone)
    state: Injection | None = module.__dict__.get('_petl')
    if state is None:
        site_map = find_site_map(module)
        site_map.check(module)
        sites = tuple(site_map.sites(module))
    else:
        site_map, sites = state.site_map, state.sites
        for name, other in state.slots.items():
            if other.method.config() == method.config() and slot in (None, name):
                raise PETLError(
                    f'{type(method).__name__} is already injected in slot {name!r}; '
                    'eject it first, or name another slot'
                )
        if slot in state.slots:
            raise PETLError(
                f'slot {slot!r} holds {state.slots[slot].method!r}; eject it first, '
                f'or name another slot'
            )
    wanted = _wanted(method, module, sites)
    shared = method.share(wanted)
    deltas = {site: method.build(site) for site in wanted}
    _check_ports(method, deltas)

    if state is None:
        state = _adopt(module, site_map, sites, tuple(head), frozen_drop_path)
    slot = slot or next(n for n in map(str, count()) if n not in state.slots)
    if shared is not None:
        _child(module, 'shared')[slot] = shared
    for site, delta in deltas.items():
        if shared is not None:
            delta.attach(shared)
        _child(module.get_submodule(site.host), site.key)[slot] = delta
    like = next(p for n, p in module.named_parameters() if n in state.base)
    for part in (*deltas.values(), *((shared,) if shared is not None else ())):
        part.to(like.device, like.dtype)

    def weights(host: str, kind: str, index: int | None = None) -> Affine:
        site = next(
            s
            for s in sites
            if s.host == host and s.kind == kind and index in (None, s.index)
        )
        return site_map.affine(module, site)

    with torch.no_grad():
        method.initialise(deltas, weights)
    state.slots[slot] = _slot(method, module, state, tuple(wanted))
    module.train(state.training)
    for part in module.modules():
        if hasattr(part, '_is_init'):
            part._is_init = True
    return backbone


def wanted_sites(
    backbone: nn.Module, method: Method | type[Method] | str | Mapping[str, Any]
) -> list[Site]:
    """The sites a method would plug into; the backbone stays as it is.

    Raises:
        PETLError: The backbone cannot serve the method.
    """
    module = core_of(backbone)
    state = module.__dict__.get('_petl')
    sites = state.sites if state else tuple(find_site_map(module).sites(module))
    return _wanted(build_method(method), module, sites)


def _adopt(
    module: nn.Module,
    site_map: SiteMap,
    sites: tuple[Site, ...],
    head: tuple[str, ...],
    frozen_drop_path: bool,
) -> Injection:
    """Swap the classes and write down what the base was."""
    from mmpetl.core.state import tensor_digests

    params = dict(module.named_parameters())
    buffers = dict(module.named_buffers())
    for prefix in head:  # what the caller names must exist
        if not any(_below(name, prefix) for name in params):
            raise PETLError(
                f'nothing in {type(module).__name__} is called {prefix!r}, so it '
                'cannot train with the head'
            )
    head += site_map.head
    state = Injection(
        site_map=site_map,
        sites=sites,
        base=frozenset(params) | frozenset(buffers),
        trainable_before=frozenset(n for n, p in params.items() if p.requires_grad),
        digests=tensor_digests(params),
        head=frozenset(n for n in params if any(_below(n, h) for h in head)),
        frozen_drop_path=frozen_drop_path,
        training=module.training,
    )
    site_map.swap(module)
    module.__dict__['_petl'] = state
    return state


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f'{prefix}.')


def _child(host: nn.Module, key: str) -> Plug:
    """The plug of a site, made when it is first asked for."""
    if 'petl' not in host._modules:
        host.petl = nn.Module()
    if key not in host.petl._modules:
        host.petl.add_module(key, Plug())
    return host.petl._modules[key]


def plug_of(module: nn.Module, site: Site) -> Plug:
    """The plug of a site, made when it is first asked for."""
    return _child(module.get_submodule(site.host), site.key)


def _wanted(method: Method, module: nn.Module, sites: tuple[Site, ...]) -> list[Site]:
    offered = {site.kind for site in sites}
    lacking = [kind for kind in method.targets if kind not in offered]
    wanted = method.choose(list(sites))
    if lacking or (method.targets and not wanted):
        raise PETLError(
            f'{type(method).__name__} needs site kind '
            f'{", ".join(lacking or method.targets)}; {type(module).__name__} offers '
            f'{", ".join(sorted(offered))} (docs/methods/{method.stem()}.md)'
        )
    method.check(wanted)
    return wanted


def _check_ports(method: Method, deltas: Mapping[Site, Delta]) -> None:
    for site, delta in deltas.items():
        if site.kind in AFTER_ONLY and type(delta).before is not Delta.before:
            raise PETLError(
                f'{type(method).__name__} overrides `before` at {site}, which shares '
                'its input with two others; plug it into attn.qkv'
            )


def _slot(
    method: Method, module: nn.Module, state: Injection, sites: tuple[Site, ...]
) -> Slot:
    selected = set()
    for name, param in module.named_parameters():
        if name in state.base and name in state.trainable_before:
            owner = module.get_submodule(name.rpartition('.')[0])
            if method.selects(name, param, owner):
                selected.add(name)
    params = dict(module.named_parameters())
    size = sum(p.numel() for n, p in params.items() if n in state.base)
    chosen = sum(params[n].numel() for n in selected)
    originals = None
    if chosen <= KEEP_AT_MOST * size:
        originals = {n: params[n].detach().clone() for n in selected}
    return Slot(method, sites, frozenset(selected), originals=originals)


def _pick(state: Injection, slot: str | None) -> str:
    if slot is None and len(state.slots) == 1:
        return next(iter(state.slots))
    if slot not in state.slots:
        raise PETLError(
            f'no slot {slot!r}; there are: {", ".join(state.slots)} (name one of them)'
        )
    return slot


def _swap_selected(module: nn.Module, slot: Slot, name: str) -> None:
    """Exchange the selected base values with those kept in the slot."""
    if not slot.selected:
        return
    if slot.originals is None:
        raise PETLError(
            f'{type(slot.method).__name__} in slot {name!r} trains most of the base, '
            'of which no second copy is kept; load the base again instead'
        )
    with torch.no_grad():
        for key, kept in slot.originals.items():
            param = module.get_parameter(key)
            now = param.detach().clone()
            param.copy_(kept)
            slot.originals[key] = now


def _switch(backbone: nn.Module, slot: str | None, on: bool) -> None:
    module, state = injection_of(backbone)
    name = _pick(state, slot)
    entry = state.slots[name]
    if entry.enabled == on:
        return
    _swap_selected(module, entry, name)
    entry.enabled = on
    for site in entry.sites:
        plug = module.get_submodule(site.path)
        (plug.off.discard if on else plug.off.add)(name)
    module.train(state.training)


def enable(backbone: nn.Module, slot: str | None = None) -> None:
    """Let the method in ``slot`` act again."""
    _switch(backbone, slot, True)


def disable(backbone: nn.Module, slot: str | None = None) -> None:
    """Let the backbone compute as if the method in ``slot`` were not there."""
    _switch(backbone, slot, False)


def eject(
    backbone: nn.Module, slot: str | None = None, *, restore: bool = True
) -> nn.Module:
    """Take a method out. After the last one the backbone is what it was before.

    Args:
        backbone: An injected backbone.
        slot: Which method; needed where there are several.
        restore: Whether base parameters that the method trained get their values
            back.

    Raises:
        PETLError: ``restore`` is asked for, but the method trained most of the base.
    """
    module, state = injection_of(backbone)
    name = _pick(state, slot)
    entry = state.slots[name]
    if restore and entry.enabled:
        _swap_selected(module, entry, name)
    hosts = {site.host: module.get_submodule(site.host) for site in entry.sites}
    for site in entry.sites:
        plug = module.get_submodule(site.path)
        del plug[name]
        plug.off.discard(name)
    for host in (*hosts.values(), module):
        petl = host._modules.get('petl')
        if petl is None:
            continue
        if 'shared' in petl._modules and name in petl.shared:
            del petl.shared[name]
        for key in [k for k, plug in petl._modules.items() if not len(plug)]:
            del petl._modules[key]
        if not petl._modules:
            del host._modules['petl']
    del state.slots[name]
    if state.slots:
        module.train(state.training)
        return backbone
    del module.__dict__['_petl']
    state.site_map.unswap(module)
    for key, param in module.named_parameters():
        param.requires_grad_(key in state.trainable_before)
    module.train(state.training)
    return backbone
