"""Write the generated tables: support grid, index of methods, digits comparison.

Example: python tools/misc/update_tables.py --check

Grid and index are computed from the registries: a method is supported where every site
kind it needs is offered. The digits are those that tools/digits.py left in docs/digits.
Text between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import pkgutil
import sys
from pathlib import Path

import torch

import mmpetl.backbones
from mmpetl.core import (
    Method,
    PETLError,
    build_method,
    count_trainable,
    inject,
    registered_methods,
    wanted_sites,
)
from mmpetl.registry import BACKBONES

ROOT = Path(__file__).resolve().parents[2]

PACKAGES = {
    'mmpretrain': 'mmpretrain.models',
    'mmaction': 'mmaction.models',
    'timm': 'timm',
}


def examples() -> dict[str, torch.nn.Module]:
    """One full-size instance per described backbone, by stem, without memory."""
    result = {}
    for info in pkgutil.iter_modules(mmpetl.backbones.__path__):
        root = info.name.partition('_')[0]
        importlib.import_module(PACKAGES.get(root, root))
        module = importlib.import_module(f'mmpetl.backbones.{info.name}')
        for site_map in BACKBONES.module_dict.values():
            if site_map.__module__ == module.__name__:
                result[info.name] = site_map().example().to('meta')
    return result


def supports(method: Method, backbone: torch.nn.Module) -> bool:
    """Whether the backbone offers every site the method needs."""
    try:
        wanted_sites(backbone, method)
    except PETLError:
        return False
    return True


def grid(backbones: dict[str, torch.nn.Module]) -> str:
    """Methods x backbones."""
    head = ['method', *(f'`{stem}`' for stem in backbones)]
    lines = [head, [':---', *[':---:'] * len(backbones)]]
    for name, cls in methods().items():
        method = build_method(name)
        page = f'[{name}](docs/methods/{cls.stem()}.md)'
        marks = ['yes' if supports(method, b) else '-' for b in backbones.values()]
        lines.append([page, *marks])
    return table(lines)


def index(backbones: dict[str, torch.nn.Module]) -> str:
    """One line per method: family, sites, folds, starts, count on ViT-B/16."""
    vit = backbones['mmpretrain_vit']
    head = ['method', 'family', 'sites', 'folds', 'starts as the base', 'ViT-B/16']
    lines = [head, [':---', ':---', ':---', ':---:', ':---:', '---:']]
    for name, cls in methods().items():
        method = build_method(name)
        kinds = dict.fromkeys(site.kind for site in wanted_sites(vit, method))
        counts = count_trainable(inject(copy.deepcopy(vit), method))
        folds = method.folds or not kinds
        lines.append(
            [
                f'[{name}]({cls.stem()}.md)',
                method.family,
                ', '.join(f'`{kind}`' for kind in kinds) or 'none',
                'yes' if folds else '-',
                'yes' if method.starts_as_identity else '-',
                f'{counts.backbone:,}',
            ]
        )
    return table(lines)


def methods() -> dict[str, type[Method]]:
    """Registered methods by name: baselines first, then by family."""
    order = ('baseline', 'specification')
    known = registered_methods()

    def key(name: str) -> tuple:
        family = known[name].family
        rank = order.index(family) if family in order else len(order)
        return rank, family, name.lower()

    return {name: known[name] for name in sorted(known, key=key)}


def table(rows: list[list[str]]) -> str:
    """Rows as Markdown."""
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def replace(text: str, name: str, content: str) -> str:
    """``text`` with the part called ``name`` replaced."""
    begin, end = f'<!-- begin {name} -->', f'<!-- end {name} -->'
    if begin not in text or end not in text:
        raise PETLError(f'no `{begin}` ... `{end}` to write the table between')
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f'{before}{begin}\n{content}\n{end}{after}'


def main() -> int:
    """Write, or with --check compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='only say what is stale')
    args = parser.parse_args()
    backbones = examples()
    digits = (ROOT / 'docs' / 'digits' / 'table.md').read_text(encoding='utf-8')
    pages = {
        ROOT / 'README.md': {'grid': grid(backbones), 'digits': digits.strip()},
        ROOT / 'docs' / 'methods' / 'README.md': {'index': index(backbones)},
    }
    stale = []
    for path, parts in pages.items():
        old = new = path.read_text(encoding='utf-8')
        for name, content in parts.items():
            new = replace(new, name, content)
        if new != old:
            stale.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(new, encoding='utf-8')
    print('\n'.join(f'{"stale" if args.check else "written"}: {p}' for p in stale))
    return int(bool(stale) and args.check)


if __name__ == '__main__':
    sys.exit(main())
