"""The record of an injection: slots, and the one store of base values.

It stands at the module with the sites and knows no host; ``inject`` writes it,
``slots`` switches what it lists, and everybody else reads it through
:func:`injections`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.context import Share
from mmpetl.core.delta import Delta, Plug
from mmpetl.core.errors import PETLError
from mmpetl.core.method import Method
from mmpetl.core.site import Site
from mmpetl.core.sitemap import SiteMap


@dataclass
class Slot:
    """One method on one backbone.

    Attributes:
        method: The method.
        sites: Where its deltas are.
        selected: Base parameters that it trains, and running statistics of norms that
            move with them.
        restores: Whether the base keeps a second copy of them, so that it can be
            given back; not where a method trains most of the base.
        enabled: Whether it acts.
        frozen: Whether it acts without training.
        paused: Names of its parameters that trained when it was last switched off or
            frozen.
        layers: Patterns of the layers that were named, None for all.
        blocks: Indices of the blocks that were named, None for all.
        places: Patterns of modules by kind, where places were named.
    """

    method: Method
    sites: tuple[Site, ...]
    selected: frozenset[str]
    restores: bool = True
    enabled: bool = True
    frozen: bool = False
    paused: frozenset[str] = frozenset()
    layers: tuple[str, ...] | None = None
    blocks: tuple[int, ...] | None = None
    places: dict[str, tuple[str, ...]] | None = None


@dataclass
class Injection:
    """What a backbone knows of its methods.

    A base parameter that several slots select holds the value of the last enabled one,
    else the base's. The other slots' values are buffers below ``petl.kept``, so that
    they move, save and load with the rest; the base's are in ``originals``.
    """

    site_map: SiteMap
    sites: tuple[Site, ...]
    base: frozenset[str]
    """Names of the parameters and buffers that the backbone had before."""
    trainable_before: frozenset[str]
    digests: dict[str, str]
    """Digest of every base parameter as it was when the first method came."""
    head: frozenset[str] = frozenset()
    """Base parameters that train with the head: the checkpoint did not hold them."""
    extra_head: tuple[str, ...] = ()
    """Path prefixes that the caller named as head, beside those of the site map."""
    frozen_drop_path: bool = False
    training: bool = True
    """The mode that was asked for; a frozen backbone itself says ``training=False``."""
    slots: dict[str, Slot] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    """Where the base came from: its config, checkpoint and fingerprint."""
    originals: dict[str, Tensor] = field(default_factory=dict)
    """The base's values of parameters that slots select."""
    converted: dict[str, str] = field(default_factory=dict)
    """Digests after a conversion to another dtype or size, where there was one."""
    by_hand: set[str] = field(default_factory=set)
    """What slots train of the base, and a user had frozen when they stopped."""
    shares: tuple[Share, ...] | None = None
    """What a pass that begins now hands its deltas as :attr:`Context.shares`."""
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Identity and in-place count of frozen tensors when they were last found equal."""
    bits: int | None = None
    """Bits of the frozen weights of Linear layers, None where they are floating."""

    def holder(self, name: str) -> str | None:
        """The slot whose value a base parameter holds, None for the base's own."""
        found = None
        for slot, entry in self.slots.items():
            if entry.enabled and name in entry.selected:
                found = slot
        return found

    def selected(self) -> frozenset[str]:
        """What of the base is not its own: selected by enabled slots, and heads."""
        names: set[str] = set(self.head)
        for slot in self.slots.values():
            if slot.enabled:
                names |= slot.selected
        return frozenset(names)

    def digest(self, name: str) -> str:
        """What the digest of a base parameter must be now."""
        return self.converted.get(name, self.digests[name])


def find_submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, None where there is none."""
    for name in path.split('.'):
        module = module._modules.get(name)
        if module is None:
            return None
    return module


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of a name."""
    path, _, last = name.rpartition('.')
    owner = module.get_submodule(path)
    found = owner._parameters.get(last)
    return owner._buffers[last] if found is None else found


def moving_statistics(module: nn.Module, trained: Set[str]) -> set[str]:
    """Running statistics of norms that are in train mode while parameters train.

    A norm is where all of its parameters train; one without any follows what it lies
    in, as :func:`~mmpetl.core.host.apply_modes` has it.

    Args:
        module: A backbone.
        trained: Names of its base parameters that train.
    """
    ids = {id(p) for n, p in module.named_parameters() if n in trained}
    whole = wholly(module, lambda param: id(param) in ids)
    found: set[str] = set()

    def visit(part: nn.Module, path: str, parent: bool) -> None:
        moves = whole.get(part, parent)
        if moves and getattr(part, 'running_mean', None) is not None:
            kept = set(part._buffers) - part._non_persistent_buffers_set
            found.update(f'{path}{n}' for n in kept if part._buffers[n] is not None)
        for name, child in part.named_children():
            if name != 'petl':
                visit(child, f'{path}{name}.', moves)

    visit(module, '', False)
    return found


def wholly(
    module: nn.Module, holds: Callable[[nn.Parameter], bool]
) -> dict[nn.Module, bool]:
    """Modules with parameters of the base, and whether something holds of all of them.

    Args:
        module: A backbone, with or without deltas.
        holds: Asked of every parameter that belongs to no delta.
    """
    found: dict[nn.Module, bool] = {}

    def visit(part: nn.Module) -> None:
        answers = [holds(p) for p in part._parameters.values() if p is not None]
        for name, child in part.named_children():
            if name != 'petl':
                visit(child)
                if child in found:
                    answers.append(found[child])
        if answers:
            found[part] = all(answers)

    visit(module)
    return found


def record_of(module: nn.Module) -> Injection | None:
    """The record of this very module, None where nothing is injected into it."""
    return module.__dict__.get('_petl')


def injections(model: nn.Module) -> list[tuple[str, nn.Module, Injection]]:
    """Path, module and record of every backbone below ``model`` with a method."""
    return [
        (path, module, record)
        for path, module in model.named_modules()
        if (record := record_of(module)) is not None
    ]


def find_injected(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of every backbone below ``model`` that holds a method."""
    return [(path, module) for path, module, _ in injections(model)]


def injection_of(backbone: nn.Module) -> tuple[nn.Module, Injection]:
    """The module that holds the sites and its record.

    Raises:
        PETLError: Nothing has been injected, or into several backbones.
    """
    found = injections(backbone)
    if len(found) != 1:
        raise PETLError(
            f'{type(backbone).__name__} holds {len(found)} injected backbones; '
            'one is needed (mmpetl.inject(backbone, method) makes one)'
        )
    _, module, record = found[0]
    return module, record


def is_share(tensor: Tensor) -> bool:
    """Whether this process holds a part of a tensor, the others the rest.

    It is FSDP's kind of tensor, or a parameter at which DeepSpeed has hung its part.
    """
    return hasattr(tensor, 'to_local') or hasattr(tensor, 'ds_tensor')


def own_share(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a plain one itself, of a share its part."""
    if hasattr(tensor, 'to_local'):
        return tensor.to_local()
    share = getattr(tensor, 'ds_tensor', None)
    if share is None:
        return tensor
    if not tensor.numel():
        return share
    # The whole is there too, and is what a pass reads: its part, and what fills it up.
    row, size = tensor.detach().flatten(), share.numel()
    own = row[torch.distributed.get_rank() * size :][:size]
    filling = share.detach().flatten()[len(own) :]
    return torch.cat((own, filling.to(own.device)))


def check_whole(module: nn.Module) -> None:
    """Raise PETLError where this process holds a share of the base and not all of it.

    Blocks are of FSDP's classes then and their weights of its kind, or weights empty
    but for when DeepSpeed gathers them.
    """
    if any(is_share(param) for param in module.parameters()):
        raise PETLError(
            f'the base of {type(module).__name__} is sharded over processes: inject '
            'and eject before that, and fold a saved delta into the whole base '
            '(mmpetl fold DELTA OUT --base FILE)'
        )


class Place:
    """Where a method sits: the module with the sites, its slot, and its deltas.

    Args:
        model: An injected backbone, or a model that contains one.
        method: The method itself, or an equal one.

    Raises:
        PETLError: The model does not hold the method.
    """

    def __init__(self, model: nn.Module, method: Method) -> None:
        for _, module, record in injections(model):
            for name, slot in record.slots.items():
                if slot.method is method or slot.method.config() == method.config():
                    self._stand(module, record, name)
                    return
        raise PETLError(
            f'{type(model).__name__} does not hold {method!r}; inject it before '
            'calibrating'
        )

    @classmethod
    def of(cls, module: nn.Module, record: Injection, slot: str) -> Place:
        """The place of a slot of an injected backbone."""
        place = cls.__new__(cls)
        place._stand(module, record, slot)
        return place

    def _stand(self, module: nn.Module, record: Injection, slot: str) -> None:
        self.module, self.record, self.slot = module, record, slot
        self.method, self.sites = record.slots[slot].method, record.slots[slot].sites

    def delta(self, site: Site) -> Delta:
        """The method's delta at a site."""
        return self.module.get_submodule(f'{site.path}.{self.slot}')

    @property
    def deltas(self) -> list[Delta]:
        """The method's deltas, in the order of its sites."""
        return [self.delta(site) for site in self.sites]

    @property
    def shared(self) -> nn.Module:
        """What the deltas share."""
        return self.module.get_submodule(f'petl.shared.{self.slot}')


def plug_of(module: nn.Module, site: Site) -> Plug:
    """The plug of a site, made when it is first asked for."""
    return child_of(module.get_submodule(site.host), site.key, Plug)


def child_of(host: nn.Module, key: str, kind: type[nn.Module]) -> nn.Module:
    """What lies at ``host.petl.key``, made when it is first asked for."""
    if 'petl' not in host._modules:
        host.petl = nn.Module()
    if key not in host.petl._modules:
        host.petl.add_module(key, kind())
    return host.petl._modules[key]


def prune(host: nn.Module) -> None:
    """Take away what is empty below ``host.petl``."""
    petl = host._modules.get('petl')
    if petl is None:
        return
    for key in [key for key, part in petl._modules.items() if not part._modules]:
        del petl._modules[key]
    if not petl._modules:
        del host._modules['petl']


def unplug(module: nn.Module, record: Injection, name: str) -> None:
    """Take the deltas of a slot out, and what they share."""
    for path in {site.host for site in record.sites} | {''}:
        host = module.get_submodule(path)
        petl = host._modules.get('petl')
        for plug in () if petl is None else petl.children():
            plug._modules.pop(name, None)
            if isinstance(plug, Plug):
                plug.off.discard(name)
        prune(host)
    record.site_map.settle(module)


def deltas_of(module: nn.Module, record: Injection) -> Iterator[Delta]:
    """Every delta of a backbone, watchers included."""
    hosts = {site.host: None for site in record.sites}
    for host in hosts:
        petl = module.get_submodule(host)._modules.get('petl')
        for plug in () if petl is None else petl._modules.values():
            if isinstance(plug, Plug):
                yield from plug._modules.values()


class Kept(nn.Module):
    """Values that slots have learnt and the parameters do not show: slot -> tree."""

    def put(self, slot: str, name: str, value: Tensor) -> None:
        """Keep a value under the name that the parameter has in the backbone."""
        tree: nn.Module = self
        *path, last = (slot, *name.split('.'))
        for part in path:
            if part not in tree._modules:
                tree.add_module(part, nn.Module())
            tree = tree._modules[part]
        tree.register_buffer(last, value)

    def values(self, slot: str) -> dict[str, Tensor]:
        """What is kept for a slot, by name."""
        part = self._modules.get(slot)
        return {} if part is None else dict(part.named_buffers())


def parts_of(module: nn.Module, name: str, slot: Slot) -> dict[str, nn.Module]:
    """What belongs to a slot alone, by path: what its deltas share, and each delta."""
    paths = (f'petl.shared.{name}', *(f'{site.path}.{name}' for site in slot.sites))
    found = {path: find_submodule(module, path) for path in paths}
    return {path: part for path, part in found.items() if part is not None}


def own_parameters(module: nn.Module, name: str, slot: Slot) -> dict[str, nn.Parameter]:
    """Parameters that belong to a slot alone, by their names in the backbone."""
    return {
        f'{path}.{key}': param
        for path, part in parts_of(module, name, slot).items()
        for key, param in part.named_parameters()
    }


def learnt_values(module: nn.Module, record: Injection, name: str) -> dict[str, Tensor]:
    """What a slot has made of the base parameters that it selects, by name.

    Each is the parameter itself where it shows the slot's value, else what is kept.
    """
    kept = find_submodule(module, 'petl.kept')
    values = {} if kept is None else kept.values(name)
    for key in record.slots[name].selected:
        if record.holder(key) == name:
            values[key] = tensor_of(module, key)
    return values


@contextmanager
def rearranging(module: nn.Module, record: Injection) -> Iterator[None]:
    """Slots come, go or switch inside of it; then each value stands where it belongs.

    A slot that has just come starts from the values that are shown.
    """
    learnt = {slot: learnt_values(module, record, slot) for slot in record.slots}
    selected = frozenset().union(*(s.selected for s in record.slots.values()))
    before = {name: record.holder(name) for name in selected}
    yield
    shown, kept = {}, {}
    for name, old in before.items():
        new = record.holder(name)
        if new is None and old is not None:
            shown[name] = record.originals[name]
        elif new != old and name in learnt.get(new, {}):
            shown[name] = learnt[new][name]
    for slot, entry in record.slots.items():
        for name, value in learnt.get(slot, {}).items():
            if name in entry.selected and record.holder(name) != slot:
                kept[slot, name] = value.detach().clone()
    with torch.no_grad():
        for name, value in shown.items():
            tensor = tensor_of(module, name)
            if value is not tensor:
                tensor.copy_(value)
    _keep(module, kept)
    wanted = frozenset().union(*(s.selected for s in record.slots.values()))
    record.originals = {n: v for n, v in record.originals.items() if n in wanted}


def _keep(module: nn.Module, values: dict[tuple[str, str], Tensor]) -> None:
    """Hold these values by slot and name, and no others."""
    petl = module._modules.get('petl')
    if petl is not None:
        petl._modules.pop('kept', None)
    for (slot, name), value in values.items():
        child_of(module, 'kept', Kept).put(slot, name, value)
    prune(module)
