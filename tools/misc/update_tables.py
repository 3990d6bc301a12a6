"""Write the generated tables: grid, methods, layers, stacks, data, weights, digits.

Example: python tools/misc/update_tables.py --check

Grid and index are computed from the registries: a method is supported where every site
kind it needs is offered, and a dash says what is lacking. Which methods act together is
asked of the check that `inject` makes. Data sets are those of the catalogue, weight
files those of the registry. The digits are those that tools/digits.py left in
docs/digits. The gallery of methods is that of tools/misc/gallery.py.
Text between `<!-- begin NAME -->` and `<!-- end NAME -->` is replaced.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import pkgutil
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

import mmpetl.backbones
from mmpetl.core import (
    KINDS,
    Method,
    PETLError,
    Site,
    SiteMap,
    build_method,
    check_shapes,
    conflict,
    count_trainable,
    find_site_map,
    inject,
    registered_methods,
    wanted_sites,
)
from mmpetl.core.inject import core_of
from mmpetl.core.sitemap import class_name
from mmpetl.datasets.catalog import DatasetFacts, select
from mmpetl.models.frame_backbone import FrameBackbone
from mmpetl.models.weights import KNOWN_FILES
from mmpetl.registry import BACKBONES

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(Path(__file__).resolve().parent))  # runpy does not

import gallery  # noqa: E402

GROUPS = {
    'plain': 'one stage, global attention',
    'windowed': 'attention in windows',
    'pyramid': 'several stages, keys and values of a whole map',
    'convolutional': 'no attention',
    'video': 'clips instead of images',
}
"""Groups of backbones, the columns of the short grid."""


def side_by_side(cls: type) -> torch.nn.Module:
    """A ViT of timm whose blocks have one shortcut."""
    from timm.models.vision_transformer import ParallelScalingBlock

    return cls(num_classes=0, block_fn=ParallelScalingBlock)


OPTIONS: dict[str, dict[str, Callable[[type], torch.nn.Module]]] = {
    'timm_vit': {
        'with a classifier of its own (`num_classes=1000`)': lambda c: c(),
        'without pooling (`global_pool=""`)': lambda c: c(
            num_classes=0, global_pool=''
        ),
        'with blocks side by side (`block_fn=ParallelScalingBlock`)': side_by_side,
    },
    'timm_eva': {
        'with a classifier of its own (`num_classes=1000`)': lambda c: c(),
        'with fewer heads of keys than of queries (`num_kv_heads=6`)': lambda c: c(
            num_classes=0, attn_type='rope', qkv_fused=False, num_kv_heads=6
        ),
        'with gated networks (`swiglu_mlp=True`)': lambda c: c(
            num_classes=0, swiglu_mlp=True
        ),
    },
    'timm_beit': {
        'with a classifier of its own (`num_classes=1000`)': lambda c: c(),
    },
    'mmpretrain_vit': {
        'with maps as outputs (`out_type="featmap"`)': lambda c: c(
            arch='base', out_type='featmap'
        ),
        'with gated networks (`ffn_type="swiglu_fused"`)': lambda c: c(
            arch='base', layer_cfgs={'ffn_type': 'swiglu_fused'}
        ),
    },
    **{
        stem: {
            'with maps as outputs (`out_type="featmap"`)': lambda c: c(
                arch='base', out_type='featmap'
            )
        }
        for stem in ('mmpretrain_beit', 'mmpretrain_deit3', 'mmpretrain_eva02')
    },
    'mmpretrain_deit': {
        'with the mean as output (`out_type="avg_featmap"`)': lambda c: c(
            arch='base', out_type='avg_featmap'
        ),
    },
    'mmaction_vit': {
        'with maps as outputs (`return_feat_map=True`)': lambda c: c(
            return_feat_map=True
        ),
    },
}
"""What else a backbone may be, by stem, where it may change what is offered."""

OVER_FRAMES = 'over the frames of clips (`mmpetl.FrameBackbone`)'


def over_frames(backbone: torch.nn.Module) -> torch.nn.Module:
    """A trunk of images, as it is where frames of clips are its batch."""
    return core_of(FrameBackbone(backbone, 8)).to('meta')


FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn, torch.rand)


class Weightless(TorchFunctionMode):
    """Large tensors are made without memory, and nothing is drawn for them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.copy_ and args[1].is_meta:
            return args[0]  # a small buffer, made of the shape of a large one
        if func in FACTORIES and kwargs.get('device') is None:
            made = func(*args, **{**kwargs, 'device': 'meta'})
            if made.numel() > 2**16:
                return made
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Trunk:
    """A described backbone, of full size and without memory.

    Attributes:
        stem: The file of ``mmpetl/backbones`` that describes it.
        name: Package and class.
        model: What its site map gives as an example.
        options: Other instances of the class, by what is said of them.
    """

    stem: str
    name: str
    model: torch.nn.Module
    options: dict[str, torch.nn.Module]

    @property
    def group(self) -> str:
        """One of :data:`GROUPS`, by what it is made of and what it offers."""
        sites = offer(self.model)[2]
        if self.name.startswith('mmaction.'):
            return 'video'
        if not any(site.kind.startswith('attn.') for site in sites):
            return 'convolutional'
        if any(site.window is not None for site in sites):
            return 'windowed'
        return 'pyramid' if any(site.stage for site in sites) else 'plain'


@cache
def trunks() -> list[Trunk]:
    """Every described backbone, in the order of groups and names."""
    found = []
    for info in pkgutil.iter_modules(mmpetl.backbones.__path__):
        name = f'mmpetl.backbones.{info.name}'
        if info.ispkg:  # what several descriptions share
            continue
        if info.name.startswith('transformers'):  # docs/huggingface.md; an extra
            continue
        importlib.import_module(name)
        for site_map in list(BACKBONES.module_dict.values()):
            if site_map.__module__ == name:
                cls = site_map.host
                with Weightless():
                    model = site_map().example().to('meta')
                    options = {
                        text: build(cls).to('meta')
                        for text, build in OPTIONS.get(info.name, {}).items()
                    }
                    if not info.name.startswith('mmaction'):
                        options[OVER_FRAMES] = over_frames(copy.deepcopy(model))
                found.append(Trunk(info.name, class_name(cls), model, options))
    order = list(GROUPS)
    return sorted(found, key=lambda t: (order.index(t.group), t.name, t.stem))


class AnyModel(torch.nn.Module):
    """A model that no file describes, with each usual layer."""

    __module__ = 'yours'  # as messages name it, however this file is run

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = torch.nn.ModuleList(AnyBlock() for _ in range(2))
        self.head = torch.nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores, (B, 5)."""
        x = self.stem(x).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class AnyBlock(torch.nn.Module):
    """Two projections behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(32)
        self.up, self.down = torch.nn.Linear(32, 64), torch.nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, 32)."""
        return x + self.down(self.up(self.norm(x)).relu())


def supports(method: Method, backbone: torch.nn.Module) -> bool:
    """Whether the backbone offers every site the method needs."""
    return refusal(method, backbone) is None


def refusal(method: Method, backbone: torch.nn.Module) -> str | None:
    """Why a backbone cannot serve a method, None where it can; see `wanted_sites`."""
    core, site_map, sites = offer(backbone)
    lacking = method.lacks({site.kind for site in sites})
    try:
        if not lacking:
            wanted = method.choose(list(sites))
            lacking = [] if wanted else list(method.targets)
            method.check(wanted)
            check_shapes(method, wanted, site_map, sites)
    except PETLError as error:
        return str(error)  # the method's own check
    reasons = {kind: site_map.why_absent(core, kind) for kind in lacking}
    lines = [f'no `{kind}` ({text or KINDS[kind]})' for kind, text in reasons.items()]
    return '; '.join(lines) or None


@cache
def offer(backbone: torch.nn.Module) -> tuple[torch.nn.Module, SiteMap, list[Site]]:
    """The module with the sites, what describes it, and its sites."""
    core = core_of(backbone)
    site_map = find_site_map(core)
    return core, site_map, site_map.sites_of(core)


def on_any_model(method: Method) -> tuple[str, str]:
    """Whether a model without a file serves a method, and what is to be said of it."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try:
            inject(AnyModel(), method)
        except PETLError as error:
            if 'no site map' not in str(error):
                return 'yes*', str(error)  # names the argument that is in the way
            places = ', '.join(f'`{kind}`' for kind in method.targets)
            where = f'acts at {places}; ' if places else ''
            return '-', f'{where}only a file for the class says where that is'
    return 'yes', '; '.join(str(warning.message) for warning in said)


@dataclass(frozen=True)
class Cell:
    """Whether a trunk serves a method.

    Attributes:
        refused: Why its example cannot, None where it can.
        options: The same where another option is set and changes it, by option.
    """

    refused: str | None
    options: dict[str, str | None]

    def notes(self) -> list[str]:
        """What a footnote says."""
        notes = [] if self.refused is None else [self.refused]
        return notes + [
            f'served {option}' if why is None else f'not {option}: {why}'
            for option, why in self.options.items()
        ]


def cell(method: Method, trunk: Trunk) -> Cell:
    """What is known of a pair."""
    refused = refusal(method, trunk.model)
    found = {text: refusal(method, model) for text, model in trunk.options.items()}
    differs = {
        text: why
        for text, why in found.items()
        if (why is None) is not (refused is None)
    }
    return Cell(refused, differs)


class Grid:
    """Methods x backbones, once for all tables."""

    def __init__(self, found: list[Trunk]) -> None:
        self.trunks = found
        self.methods = {name: build_method(name) for name in methods()}
        self.cells = {
            (name, trunk.name): cell(method, trunk)
            for name, method in self.methods.items()
            for trunk in found
        }
        self.any_model = {
            name: on_any_model(method) for name, method in self.methods.items()
        }
        self.groups = {
            group: [trunk for trunk in found if trunk.group == group]
            for group in GROUPS
        }
        self.groups = {group: found for group, found in self.groups.items() if found}

    def short(self) -> str:
        """Methods x groups of backbones."""
        head = ['method', *self.groups, 'any model']
        lines = [head, [':---', *[':---:'] * (len(head) - 1)]]
        for name, method in self.methods.items():
            row = [f'[{name}](docs/methods/{method.stem()}.md)']
            for members in self.groups.values():
                cells = [self.cells[name, trunk.name] for trunk in members]
                served = sum(c.refused is None for c in cells)
                mark = {0: '-', len(cells): 'yes'}.get(
                    served, f'{served} of {len(cells)}'
                )
                row.append(mark + '*' * any(c.options for c in cells))
            lines.append([*row, self.any_model[name][0]])
        groups = '\n'.join(
            f'- {group} ({GROUPS[group]}): '
            + ', '.join(f'`{trunk.name}`' for trunk in members)
            for group, members in self.groups.items()
        )
        return (
            f'{table(lines)}\n\n{groups}\n\n'
            '\\* depends on an option of backbone or method. '
            '[docs/grid.md](docs/grid.md) shows each backbone, with a reason for every '
            'dash.'
        )

    def long(self) -> str:
        """A table per group, and what its dashes and marks stand for."""
        parts = []
        for group, members in self.groups.items():
            notes: dict[str, int] = {}
            head = ['method', *(f'`{trunk.name}`' for trunk in members)]
            lines = [head, [':---', *[':---:'] * len(members)]]
            for name, method in self.methods.items():
                row = [f'[{name}](methods/{method.stem()}.md)']
                for trunk in members:
                    found = self.cells[name, trunk.name]
                    marks = [
                        str(notes.setdefault(note, len(notes) + 1))
                        for note in found.notes()
                    ]
                    row.append(
                        ' '.join(['yes' if found.refused is None else '-', *marks])
                    )
                lines.append(row)
            parts += [f'## {group.capitalize()}: {GROUPS[group]}', table(lines)]
            if notes:
                parts.append('\n'.join(f'{n}. {note}' for note, n in notes.items()))
        lines = [['method', 'any model', 'note'], [':---', ':---:', ':---']]
        for name, method in self.methods.items():
            page = f'[{name}](methods/{method.stem()}.md)'
            lines.append([page, *self.any_model[name]])
        parts += ['## Any model: no file describes it', table(lines)]
        return '\n' + '\n\n'.join(parts) + '\n'


def index(backbones: dict[str, torch.nn.Module]) -> str:
    """What each method is and costs, and where it is good, each in a line.

    Sites are those of the first backbone that serves it.
    """
    vit = backbones['mmpretrain_vit']
    head = 'method, family, sites, folds, starts as the base, ViT-B/16, step, kept'
    lines = [head.split(', '), [':---'] * 3 + [':---:'] * 2 + ['---:'] * 3]
    good = [['method', 'good where', 'not where'], [':---'] * 3]
    costs = measured_costs()
    for name, cls in methods().items():
        method = build_method(name)
        hosts = (b for b in (vit, *backbones.values()) if supports(method, b))
        host = next(hosts, None)
        # None: frames of clips in the batch, which no backbone has by itself.
        sites = [] if host is None else wanted_sites(host, method)
        kinds = dict.fromkeys(site.kind for site in sites) or method.targets
        count = '-'
        if host is vit:
            tuned = inject(copy.deepcopy(vit), method)
            count = f'{count_trainable(tuned).backbone:,}'
        link = f'[{name}]({cls.stem()}.md)'
        lines.append(
            [
                link,
                method.family,
                ', '.join(f'`{kind}`' for kind in kinds) or 'none',
                'yes' if method.folds or not kinds else '-',
                'yes' if method.starts_as_identity else '-',
                count,
                *costs.get(name, ('-', '-')),
            ]
        )
        page = ROOT / 'docs' / 'methods' / f'{cls.stem()}.md'
        good.append([link, *good_where(page, name)])
    return f'{table(lines)}\n\n{table(good)}'


LEAVES = {
    'layer.linear': 'Linear',
    'layer.conv': 'convolutions',
    'layer.dwconv': 'grouped convolutions',
    'layer.norm': 'norms',
}
"""What the kinds of single layers are called on the page of any model."""


def by_layers() -> str:
    """What methods do where no file describes a model, or layer by layer."""
    head = ['method', 'layers of any model', 'places by name', 'sizes by layer']
    lines = [head, [':---'] * len(head)]
    for name, cls in methods().items():
        acts = [LEAVES[kind] for kind in cls.leaf_kinds or ()]
        if cls.on_any_model() and not acts:
            picks = cls.selects, cls.select
            trains = picks != (Method.selects, Method.select)
            acts = ['what it trains of the base' if trains else 'none but the head']
        placed = [f'`{kind}`' for kind in build_method(name).targets]
        where = {None: '-', '': ', '.join(placed)}
        row = [
            ', '.join(acts) or '-',
            where.get(cls.placed, f'{where[""]}, on a map'),
            ', '.join(f'`{arg}`' for arg in cls.sized) or '-',
        ]
        if set(row) != {'-'}:
            lines.append([f'[{name}](methods/{cls.stem()}.md)', *row])
    return table(lines)


def measured_costs() -> dict[str, tuple[str, str]]:
    """Time of a step and bytes kept, as ``speed/methods.py --write`` measured them.

    On a ViT-B/16, and of what looks along time on one over the frames of clips.
    """
    path = ROOT / 'docs' / 'speed' / 'methods.json'
    tables = json.loads(path.read_text(encoding='utf-8'))
    return {
        row['method']: (f'{row["step_bound"][0]:.2f}', f'{row["kept"]:.2f}')
        for backbone in ('vit_b_frames', 'vit_b')
        for row in tables[backbone]['rows']
    }


def good_where(page: Path, name: str) -> tuple[str, str]:
    """What the page of a method says of where it is good, and where it is not.

    Raises:
        PETLError: It does not say so.
    """
    text = page.read_text(encoding='utf-8')
    found = []
    for what in ('Good where', 'Not where'):
        row = re.search(rf'^\| {what} \({name}\) \| (.*) \|$', text, re.M)
        row = row or re.search(rf'^\| {what} \| (.*) \|$', text, re.M)
        if row is None:
            raise PETLError(
                f'{page.name} has no row `| {what} | ... |`, or '
                f'`| {what} ({name}) | ... |`, in its table'
            )
        found.append(row[1])
    return found[0], found[1]


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
    found = trunks()
    grid = Grid(found)
    backbones = {trunk.stem: trunk.model for trunk in found}
    digits = (ROOT / 'docs' / 'digits' / 'table.md').read_text(encoding='utf-8')
    pages = {
        ROOT / 'README.md': {'grid': grid.short(), 'digits': digits.strip()},
        ROOT / 'docs' / 'grid.md': {'grid': grid.long()},
        ROOT / 'docs' / 'any_model.md': {'methods': by_layers()},
        ROOT / 'docs' / 'methods' / 'README.md': {'index': index(backbones)},
        ROOT / 'docs' / 'stacking.md': {
            'plain': stacks(backbones['timm_vit']),
            'windowed': stacks(backbones['mmpretrain_swin']),
        },
        ROOT / 'docs' / 'datasets.md': {'catalogue': data_sets()},
        ROOT / 'docs' / 'weights.md': {'files': weight_files()},
    }
    drawn = gallery.pages()
    other, gone = gallery.compared(drawn)
    if not args.check:
        gallery.write(drawn, other, gone)
    stale = [str(path.relative_to(ROOT)) for path in (*other, *gone)]
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
