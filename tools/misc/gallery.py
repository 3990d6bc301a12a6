"""Write the gallery of methods: a picture of each, and a paragraph of its page.

Example: python tools/misc/gallery.py --check

What a picture shows is asked of a ViT-B/16 that each method is injected into, at its
defaults and without memory. ``docs/methods/gallery.md`` and the files of
``docs/methods/pictures`` are written; pictures of methods that are gone are deleted.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import schematics
import timm
import torch
from schematics import Facts

from mmpetl.core import (
    FAMILIES,
    Delta,
    Method,
    PETLError,
    build_method,
    count_trainable,
    inject,
    injection_of,
    registered_methods,
)
from mmpetl.models.frame_backbone import FrameBackbone

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / 'docs' / 'methods'
FRAMES = 8

PLACES = {
    'patch_embed.proj': 'embed.proj',
    'attn.qkv': 'attn.qkv',
    'attn.proj': 'attn.proj',
    'mlp.fc1': 'ffn.fc1',
    'mlp.fc2': 'ffn.fc2',
    'norm1': 'norm1',
    'norm2': 'norm2',
    'norm': 'out.norm',
    'cls_token': 'embed',
    'pos_embed': 'embed',
}
"""Where the parameters of the drawn ViT stand, by the ends of their modules' names."""

INTRO = """# Gallery of methods

One picture and one paragraph for each, written by `python tools/misc/gallery.py`. A
picture is a transformer block with the [sites](../api/extending.md) that methods plug
into, and what a ViT-B/16 says of itself once the method is injected at its defaults.
Each title leads to the method's page.

![what colours and frames stand for](pictures/legend.svg)
"""


def trunks() -> Iterator[tuple[str, torch.nn.Module]]:
    """What methods are drawn on: a ViT, of images and of the frames of clips."""
    with torch.device('meta'):
        vit = timm.create_model('vit_base_patch16_224', num_classes=0)
    yield 'ViT-B/16', vit
    yield f'ViT-B/16 over {FRAMES} frames', FrameBackbone(copy.deepcopy(vit), FRAMES)


def facts_of(method: Method, found: dict[str, torch.nn.Module]) -> Facts:
    """What a method is on the first trunk that serves it.

    Raises:
        PETLError: None does.
    """
    for on, trunk in found.items():
        model = copy.deepcopy(trunk)
        try:
            inject(model, method)
        except PETLError as error:
            refused = error
            continue
        return _facts(method, model, on)
    raise refused


def _facts(method: Method, model: torch.nn.Module, on: str) -> Facts:
    core, injection = injection_of(model)
    (name, slot) = next(iter(injection.slots.items()))
    ports: dict[str, set[str]] = {}
    for site in slot.sites:
        delta = core.get_submodule(site.path)[name]
        ports.setdefault(site.kind, set()).update(_ports(delta))
    trains: dict[str, str] = {}
    roles = {role.name: role for role in injection.site_map.roles(core)}
    blocks = {site.block for site in slot.sites}
    for param in slot.selected:
        blocks.add(roles[param].block)
        kind = next(
            at
            for end, at in PLACES.items()
            if re.search(rf'(^|\.){re.escape(end)}(\.|$)', param)
        )
        only_bias = roles[param].part == 'bias' and trains.get(kind) != 'weights'
        trains[kind] = 'biases' if only_bias else 'weights'
    order = {kind: i for i, kind in enumerate(schematics.BOXES)}
    return Facts(
        type(method).__name__,
        method.family,
        {
            k: tuple(sorted(v))
            for k, v in sorted(ports.items(), key=lambda p: order[p[0]])
        },
        dict(sorted(trains.items(), key=lambda pair: order[pair[0]])),
        len(blocks - {None}),
        len(list(injection.site_map.blocks(core))),
        count_trainable(model).backbone,
        on,
    )


def _ports(delta: Delta) -> set[str]:
    """Where a delta acts; one that acts within its site acts on what leaves."""
    cls = type(delta)
    found = {p for p in ('before', 'after') if getattr(cls, p) is not getattr(Delta, p)}
    return found | ({'after'} if cls.within is not Delta.within else set())


def paragraph(page: Path) -> str:
    """What the page of a method says first of its idea.

    That is the paragraph that begins with ``**Idea.**``, else the first behind the
    title that gives no address; what it announces with a colon comes with it.

    Raises:
        PETLError: There is none.
    """
    text = page.read_text(encoding='utf-8')
    parts = [part.strip('\n') for part in re.split(r'\n\s*\n', text)][1:]
    prose = [i for i, part in enumerate(parts) if re.match(r'[\w*(`\[]', part)]
    chosen = [i for i in prose if parts[i].startswith('**Idea.**')] or [
        i for i in prose if 'http' not in parts[i]
    ]
    if not chosen:
        raise PETLError(
            f'{page.name} has no paragraph that says the idea of the method'
        )
    first = chosen[0]
    found = parts[first].removeprefix('**Idea.**').strip()
    if not found.endswith(':'):
        return found
    formula = parts[first + 1] if first + 1 < len(parts) else ''
    return f'{found}\n\n{formula}' if formula.startswith('    ') else found[:-1] + '.'


def pages() -> dict[Path, str]:
    """Every file of the gallery."""
    found = dict(trunks())
    by_page: dict[str, list[Facts]] = {}
    known = registered_methods()
    order = {family: i for i, family in enumerate(FAMILIES)}
    names = sorted(known, key=lambda n: (order[known[n].family], n.lower()))
    for name in names:
        facts = facts_of(build_method(name), found)
        by_page.setdefault(known[name].stem(), []).append(facts)
    written = {FOLDER / 'pictures' / 'legend.svg': schematics.legend()}
    text, family = [INTRO], ''
    for stem, drawn in by_page.items():
        if drawn[0].family != family:
            family = drawn[0].family
            text.append(f'## {family.replace("_", " ").capitalize()}\n')
        page = FOLDER / f'{stem}.md'
        title = page.read_text(encoding='utf-8').partition('\n')[0].removeprefix('# ')
        text.append(f'### [{title}]({stem}.md)\n')
        for facts in drawn:
            picture = f'pictures/{stem}_{facts.name}.svg'
            written[FOLDER / picture] = schematics.draw(facts)
            text.append(f'![{facts.sentence()}]({picture})\n')
        text.append(f'{paragraph(page)}\n')
    return {FOLDER / 'gallery.md': '\n'.join(text), **written}


def compared(wanted: dict[Path, str]) -> tuple[list[Path], list[Path]]:
    """Files that are not as they should be, and pictures that are of no method."""
    stale = [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text(encoding='utf-8') != text
    ]
    return stale, [p for p in (FOLDER / 'pictures').glob('*.svg') if p not in wanted]


def write(wanted: dict[Path, str], stale: list[Path], gone: list[Path]) -> None:
    """Bring them up to date."""
    for path in gone:
        path.unlink()
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path], encoding='utf-8')


def main() -> int:
    """Write, or with --check compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='only say what is stale')
    args = parser.parse_args()
    wanted = pages()
    stale, gone = compared(wanted)
    if not args.check:
        write(wanted, stale, gone)
    for path in sorted((*stale, *gone)):
        print(f'{"stale" if args.check else "written"}: {path.relative_to(ROOT)}')
    return int(bool(stale or gone) and args.check)


if __name__ == '__main__':
    sys.exit(main())
