"""Try the builders of timm and the classes of transformers with a method added.

All builders of timm's Eva and VisionTransformer (hybrids included), one size of every
other family that mmpetl is held against, and the models of transformers. Each is built
without weights and with few blocks, given the method as ``mmpetl.inject`` gives it,
compared with itself before, and trained for one step on drawn data. One that fails is
tried again without a method: what fails either way counts as upstream's. A model that
no file describes is tried by its layers, which the table says.

Example: python tools/misc/walk_models.py --methods LoRA Mona --write
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from walking import (  # noqa: E402
    Row,
    append,
    check_unwritten,
    command,
    judged,
    moved,
    read,
    tuned,
    versions,
)
from walking_models import PACKAGES, build, names_of, outputs  # noqa: E402

import mmpetl.backbones  # noqa: E402
from mmpetl.core import (  # noqa: E402
    LeafMap,
    PETLError,
    inject,
    injection_of,
    registered_methods,
    slots,
)
from mmpetl.core.sitemap import class_name  # noqa: E402

CLOSE = 1e-4
"""How far outputs may be from those before, as a part of the largest value."""


def try_model(package: str, name: str, method: str | None, facts: Row) -> Row:
    """One model, one method, one step; None is the model as upstream trains it."""
    model, x = build(package, name)
    facts['backbone'] = class_name(type(model))
    model.eval()
    with torch.no_grad():
        wanted = outputs(model, x)
    if method is not None:
        _add(model, method)
        by_layers = isinstance(injection_of(model)[1].site_map, LeafMap)
        facts['backbone'] += ' (by layers)' if by_layers else ''
        model.eval()
        if slots(model)[-1].method.starts_as_identity:
            _check_equal(model, x, wanted)
    facts |= _one_step(model, x, method is not None)
    return facts | {'state': 'worked', 'line': ''}


def _add(model: nn.Module, method: str) -> None:
    """Inject, at the layers that a refusal names where it names any."""
    try:
        inject(model, method)
    except PETLError as error:
        named = re.search("layers='([^']+)'", str(error))
        if named is None or not registered_methods()[method].on_any_model():
            raise
        inject(model, method, layers=named[1])


def _check_equal(model: nn.Module, x: torch.Tensor, wanted: list) -> None:
    with torch.no_grad():
        found = outputs(model, x)
    for y, z in zip(found, wanted, strict=True):
        far = float((y - z).abs().max() / z.abs().max())
        if not far <= CLOSE:
            raise ValueError(f'outputs differ by {far:.1e} at the start')


def _one_step(model: nn.Module, x: torch.Tensor, with_method: bool) -> Row:
    """A step of AdamW towards drawn targets, with what has moved."""
    model.train()
    before, held = tuned(model) if with_method else {}, versions(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    loss = sum((y - torch.randn_like(y)).square().mean() for y in outputs(model, x))
    if not torch.isfinite(loss):
        raise ValueError(f'the loss is {float(loss)}')
    loss.backward()
    optimizer.step()
    found: dict[str, Any] = {'trained': sum(p.numel() for p in trained)}
    found['all'] = sum(p.numel() for p in model.parameters())
    if with_method:
        found['deltas'] = moved(before, tuned(model))
        check_unwritten(model, held)
    return found


def walk(
    packages: list[str], methods: list[str], only: list[str], out: Path
) -> Iterator[Row]:
    """Every model times every method; those that ``out`` holds are not tried again."""
    done = {(r['package'], r['config'], r['method']) for r in read(out)}
    for package in packages:
        _load(package)
        for name in names_of(package):
            if only and not any(word in name for word in only):
                continue
            for method in methods:
                if (package, name, method) in done:
                    continue
                row = judged(
                    partial(try_model, package, name, method),
                    partial(try_model, package, name, None),
                    {'package': package, 'config': name, 'method': method},
                )
                append(out, row)
                yield row


def _load(package: str) -> None:
    """Read a package and its descriptions once, and not in the process of each row."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise PETLError(
            f'{package} is not installed; pip install {package}, or leave it out of '
            '--packages'
        ) from error
    for info in pkgutil.iter_modules(mmpetl.backbones.__path__):
        if info.name.startswith(f'{package}_'):
            importlib.import_module(f'mmpetl.backbones.{info.name}')


def main() -> None:
    """Walk, and print the table."""
    command(__doc__, walk, PACKAGES, ['LoRA', 'Mona'], 'models', 'models')


if __name__ == '__main__':
    main()
