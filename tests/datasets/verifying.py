"""Looking at a data set, and changing its lists, for the tests of the verifier."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mmpetl.datasets.catalog import CATALOG
from mmpetl.datasets.items import list_path, read_items
from mmpetl.datasets.verify import Report, verify


def look(root: Path, id: str, **kwargs) -> Report:
    return verify(CATALOG[id], root, **{'sample': None, 'mini': True} | kwargs)


def text_of(report: Report) -> str:
    return '\n'.join(f'{f.split}: {f.what}' for f in report.faults)


def items_of(root: Path, id: str, split: int = 0) -> list:
    facts = CATALOG[id]
    return read_items(facts, facts.splits[split], root)


def list_of(root: Path, id: str, split: int = 0) -> Path:
    facts = CATALOG[id]
    return list_path(facts, facts.splits[split], root)


def edit(path: Path, change: Callable[[list], list]) -> None:
    """Change the entries of a list: lines, JSON pairs, or images of COCO."""
    if path.suffix != '.json':
        lines = change(path.read_text().splitlines())
        path.write_text(''.join(f'{line}\n' for line in lines))
        return
    data = json.loads(path.read_text())
    if 'images' in data:
        data['images'] = change(data['images'])
        kept = {image['id'] for image in data['images']}
        data['annotations'] = [a for a in data['annotations'] if a['image_id'] in kept]
    else:
        data = dict(change(list(data.items())))
    path.write_text(json.dumps(data))


def relabel(change: Callable[[int], int]) -> Callable[[list], list]:
    """Change the labels of list lines or of JSON pairs."""

    def apply(entries: list) -> list:
        if entries and isinstance(entries[0], tuple):
            return [(key, change(value)) for key, value in entries]
        parts = [line.rpartition(' ') for line in entries]
        return [f'{name} {change(int(label))}' for name, _, label in parts]

    return apply
