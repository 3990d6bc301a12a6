"""Write the generated tables: grid, methods, stacks, data sets, weights, digits.

Example: python tools/misc/update_tables.py --check

Grid and index are computed from the registries: a method is supported where every site
kind it needs is offered. Which methods act together is asked of the check that `inject`
makes. Data sets are those of the catalogue, weight files those of
the registry. The digits are those that tools/digits.py left in docs/digits.
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
    conflict,
    count_trainable,
    inject,
    registered_methods,
    wanted_sites,
)
from mmpetl.datasets.catalog import DatasetFacts, select
from mmpetl.models.weights import KNOWN_FILES
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


def stacks(backbone: torch.nn.Module) -> str:
    """Methods x methods at their defaults, those with a refused pair alone."""
    built = {name: build_method(name) for name in methods()}
    sites = {
        name: wanted_sites(backbone, method)
        for name, method in built.items()
        if supports(method, backbone)
    }
    refused = {
        (a, b)
        for a in sites
        for b in sites
        if conflict(built[a], sites[a], built[b], sites[b])
    }
    names = [name for name in sites if any(name in pair for pair in refused)]
    head = ['', *names]
    lines = [head, [':---', *[':---:'] * len(names)]]
    for a in names:
        lines.append([a, *('-' if (a, b) in refused else 'yes' for b in names)])
    count = len(sites)
    pairs = (
        f'{count} methods; of their {count**2} ordered pairs {len(refused)} are '
        'refused. Methods that the table leaves out stack with all.'
    )
    return f'\n{pairs}\n\n{table(lines)}\n'


def weight_files() -> str:
    """One line per known weight file; a dash where nothing is known."""
    head = ['file', 'what it is', 'keys', 'classifier', 'checksum', 'recipes']
    lines = [head, [':---'] * len(head)]
    for known in KNOWN_FILES:
        name = f'[`{known.name}`]({known.url})' if known.url else f'`{known.name}`'
        # A whole digest is in the registry; its beginning is enough to the eye.
        digest = (known.sha256 or known.sha256_start or '')[:8]
        sums = f'sha256 {digest}...' if digest else ''
        sums = sums or (f'md5 {known.md5_start}...' if known.md5_start else '-')
        classes = {None: '-', 0: 'none'}.get(known.head_classes, known.head_classes)
        recipes = ', '.join(f'`{recipe}`' for recipe in known.recipes) or '-'
        title = '; '.join(filter(None, [known.title, known.note]))
        lines.append([name, title, known.layout, str(classes), sums, recipes])
    return table(lines)


def data_sets() -> str:
    """The catalogue: a table per benchmark, and what goes wrong with each set."""
    titles = {
        'vtab': 'VTAB-1k',
        'fgvc': 'FGVC',
        'video': 'Video',
        'dense': 'Dense prediction',
        'study': 'Extra sets of the study',
    }
    parts = []
    for benchmark, title in titles.items():
        chosen = select([benchmark])
        parts += [f'### {title}', _catalogue(chosen)]
        sources = dict.fromkeys((f.source, f.title.partition(',')[0]) for f in chosen)
        if len({source for source, _ in sources}) == 1:
            parts.append(f'Source: {chosen[0].source}.')
        else:
            lines = [f'- {name}: {source}' for source, name in sources]
            parts.append('Sources:\n\n' + '\n'.join(lines))
        traps = [f'- `{f.id}`: {" ".join(f.traps)}' for f in chosen if f.traps]
        if traps:
            parts.append('Traps:\n\n' + '\n'.join(traps))
    return '\n' + '\n\n'.join(parts) + '\n'


def _catalogue(chosen: tuple[DatasetFacts, ...]) -> str:
    head = ['id', 'what', 'group', 'classes', 'samples', 'folder', 'metric', 'licence']
    lines = [head, [':---', ':---', ':---', '---:', ':---', ':---', ':---', ':---']]
    for facts in chosen:
        classes = str(facts.num_classes)
        if facts.subset:
            classes = f'{facts.subset} of {facts.num_classes}'
        sizes = [
            f'{split.name} {"varies" if split.size is None else f"{split.size:,}"}'
            for split in facts.splits
            if facts.layout != 'vtab' or split.name == 'test'
        ]
        lines.append(
            [
                f'`{facts.id}`',
                facts.title,
                facts.group,
                classes,
                ', '.join(sizes),
                f'`{facts.path}`',
                ', '.join(facts.metrics),
                facts.licence,
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
        ROOT / 'docs' / 'stacking.md': {
            'plain': stacks(backbones['timm_vit']),
            'windowed': stacks(backbones['mmpretrain_swin']),
        },
        ROOT / 'docs' / 'datasets.md': {'catalogue': data_sets()},
        ROOT / 'docs' / 'weights.md': {'files': weight_files()},
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
