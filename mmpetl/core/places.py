"""Places by name: modules of any model that stand for a place inside of a block.

``places={'ffn': '*.mlp'}`` says that what these modules do is a feed-forward
sub-layer. What they take and give is measured in one pass over an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmpetl.core.errors import PETLError, suggest
from mmpetl.core.leaf_map import LeafMap, layer_facts
from mmpetl.core.leaves import leaf_of
from mmpetl.core.method import Method
from mmpetl.core.patterns import as_patterns, matches, nearest
from mmpetl.core.site import KINDS, Site
from mmpetl.core.sitemap import CONVOLUTIONS, is_norm

Places = Mapping[str, Any]


def check_placed(method: Method, places: Places, site_map: Any) -> None:
    """Refuse a method that named places are not enough for.

    Raises:
        PETLError: It reads more than what enters and leaves a module, or acts at none
            of these kinds; or a file describes the model.
    """
    who = type(method).__name__
    if not isinstance(site_map, LeafMap):
        raise PETLError(
            f'{site_map.host.__name__} is described, places and all; leave `places` '
            'out, and narrow with layers and blocks'
        )
    if method.placed is None:
        raise PETLError(
            f'{who} reads more than what enters and leaves a module, so it cannot act '
            'at named places'
        )
    if not isinstance(places, Mapping) or not places:
        raise PETLError(
            f"places takes a dict, as in {{'ffn': '*.mlp'}}; got {places!r}"
        )
    for kind in places:
        if kind not in method.targets:
            hint = '' if kind in KINDS else suggest(str(kind), KINDS)
            raise PETLError(
                f'{who} does not act at {kind!r}.{hint} It acts at: '
                f'{", ".join(method.targets)}'
            )


def check_grids(method: Method, sites: list[Site]) -> None:
    """Refuse places without a grid for a method that reads one.

    Raises:
        PETLError: A place takes a sequence, of which no grid is known.
    """
    flat = next((site for site in sites if not site.has_grid), None)
    if method.placed == 'grid' and flat is not None:
        raise PETLError(
            f'{type(method).__name__} reads the grid of its features, and '
            f'{flat.host} takes a sequence, of which no grid is known'
        )


def measure(model: nn.Module, places: Places, example: Any) -> list[Site]:
    """The sites of named places, in the order of the model's modules.

    Args:
        model: The model.
        places: Patterns of modules by kind of site.
        example: An input of the model.

    Raises:
        PETLError: A pattern matches nothing, a module is a single layer, is not
            called, or takes or gives something else than one tensor of one shape.
    """
    if example is None:
        raise PETLError(
            'places are measured in one pass: give an input of the model as example='
        )
    known = {
        path: module
        for path, module in model.named_modules()
        if path and 'petl' not in path.split('.')
    }
    kinds: dict[str, str] = {}
    for kind, given in places.items():
        patterns = as_patterns(given) or ('*',)
        for pattern in patterns:
            if not any(matches((pattern.removeprefix('!'),), (p,)) for p in known):
                raise PETLError(
                    f'no module of {type(model).__name__} matches {pattern!r}.'
                    f'{nearest(pattern, known)} `print(model)` shows them'
                )
        for path, module in known.items():
            if matches(patterns, (path,)):
                if leaf_of(module):
                    raise PETLError(
                        f'{path} ({layer_facts(module)}) is a single layer and no '
                        f'place for {kind!r}; name the module that holds it'
                    )
                kinds[path] = kind
    seen = _watch(model, {path: known[path] for path in kinds}, example)
    site_map = LeafMap(model)
    return [
        _site(path, kind, known[path], seen, site_map.block_of(model, path))
        for path, kind in kinds.items()
    ]


def _watch(
    model: nn.Module, modules: Mapping[str, nn.Module], example: Any
) -> dict[str, tuple[Any, Any]]:
    """What entered and left each module in a pass."""
    seen: dict[str, tuple[Any, Any]] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple, kwargs: dict, y: Any) -> None:
            seen[path] = (args[0] if args else next(iter(kwargs.values()), None), y)

        return hook

    handles = [
        module.register_forward_hook(look(path), with_kwargs=True)
        for path, module in modules.items()
    ]
    try:
        run_once(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def run_once(model: nn.Module, example: Any) -> None:
    """A pass in eval mode; modes are afterwards as before.

    Args:
        model: The model.
        example: One value, a tuple of arguments, or a dict of them.
    """
    modes = {part: part.training for part in model.modules()}
    model.eval()
    try:
        if isinstance(example, Mapping):
            model(**example)
        else:
            model(*(example if isinstance(example, tuple | list) else (example,)))
    finally:
        for part, mode in modes.items():
            part.training = mode


def _site(
    path: str,
    kind: str,
    module: nn.Module,
    seen: Mapping[str, tuple[Any, Any]],
    inside: Mapping[str, Any],
) -> Site:
    if path not in seen:
        raise PETLError(f'{path} is not called in a pass; leave it out of places')
    x, y = seen[path]
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape):
        raise PETLError(
            f'{path} takes {_shape(x)} and gives {_shape(y)}; a place takes and gives '
            f"one tensor of one shape: exclude it, as in ['...', '!{path}']"
        )
    first = _channels_first(path, module, x)
    width = x.shape[1] if first else x.shape[-1]
    facts = {**inside, 'has_grid': x.ndim > 3, 'channels_first': first}
    return Site(kind, path, width, width, **facts)


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return f'a {type(value).__name__}'


def _channels_first(path: str, module: nn.Module, x: Tensor) -> bool:
    """Whether channels are the second axis, by the first layer inside."""
    if x.ndim == 3:
        return False
    for part in module.modules():
        wide = getattr(part, 'in_channels', getattr(part, 'in_features', None))
        if wide is None and is_norm(part) and getattr(part, 'weight', None) is not None:
            wide = len(part.weight)
        if wide is None or wide not in (x.shape[1], x.shape[-1]):
            continue
        if x.shape[1] != x.shape[-1]:
            return wide == x.shape[1]
        return isinstance(part, CONVOLUTIONS)
    raise PETLError(
        f'{path} takes {tuple(x.shape)}, of which no layer inside says where its '
        'channels are; name a place in front of or behind its change of layout'
    )
