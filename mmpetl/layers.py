"""The layers of a model, grouped: what ``layers=`` of ``mmpetl.inject`` can name.

Example: python -m mmpetl.layers timm:convnext_tiny

``mmpetl.layers(model)`` gives the same table of a model in memory.
"""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from torch import nn

from mmpetl.compat.bases import OWN
from mmpetl.core import LeafMap, PETLError, injections, layer_rows


def table(model: nn.Module, path: str = '') -> str:
    """One line for each group of layers: path in short, class and sizes, how many.

    Args:
        model: Any model, with a method or without.
        path: A submodule of it that is meant.
    """
    model = model.get_submodule(path)
    for inner, _, _ in injections(model):
        model = model.get_submodule(inner)
        break
    rows = [(name, fact, f'{count} x') for name, fact, count in layer_rows(model)]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [
        f'{name:<{widths[0]}}  {fact:<{widths[1]}}  {count}'
        for name, fact, count in rows
    ]
    site_map = LeafMap(model)
    blocks = sum(1 for _ in site_map.blocks(model))
    heads = ', '.join(site_map.head) or 'none'
    lines.append(
        f'{type(model).__name__}: {len(rows)} kinds of layers, {blocks} blocks, '
        f'head: {heads}'
    )
    return '\n'.join(lines)


def build(name: str) -> nn.Module:
    """The model of ``timm:NAME``, of a config (a file, or ``scope::file``) or a run.

    Raises:
        PETLError: timm does not know the name, or the config holds no model.
    """
    if name.startswith('timm:'):
        import timm

        try:
            return timm.create_model(name.removeprefix('timm:'))
        except RuntimeError as error:
            raise PETLError(f'timm builds no {name[5:]!r}: {error}') from error
    from mmengine.hub import get_config

    from mmpetl.apis.building import build_model
    from mmpetl.apis.runs import is_run, open_run

    if is_run(name):
        return build_model(open_run(name).config, quiet=True)
    try:
        # A config of an installed package has no path that `load_config` could read.
        foreign = '::' in name and not name.startswith(OWN)
        config = get_config(name) if foreign else name
        return build_model(config, quiet=True)
    except PETLError:
        raise
    except (OSError, ImportError, KeyError, ValueError) as error:
        why = str(error).strip('"').splitlines()[0]
        raise PETLError(
            f'{name} cannot be built ({why}); give a config, SCOPE::CONFIG of an '
            'installed package, or timm:NAME'
        ) from error


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog='python -m mmpetl.layers',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('model', help='a config, SCOPE::CONFIG, a run, or timm:NAME')
    parser.add_argument(
        '--path', default='', help='a part of the model, as in model.backbone: backbone'
    )
    args = parser.parse_args()
    try:
        print(table(build(args.model), args.path))
    except PETLError as error:
        sys.exit(str(error))


class _Callable(ModuleType):
    def __call__(self, model: nn.Module, path: str = '') -> str:
        return table(model, path)


if __name__ == '__main__':
    main()
else:
    sys.modules[__name__].__class__ = _Callable
