"""``base=FILE`` of a whole model: its trunks strictly, the rest where it fits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmpetl.core import PETLError
from mmpetl.core.delta_file import check_values
from mmpetl.core.errors import shorten
from mmpetl.core.sitemap import is_below
from mmpetl.models.weights import load_base_weights
from mmpetl.models.weights.address import base_name, resolve
from mmpetl.models.weights.containers import read_tensors
from mmpetl.models.whole.initialise import Filled, LoadWatch, outer_norms, tensors_of

PREFIXES = ('{path}.', 'backbone.', '')
"""What keys of a trunk begin with in a file: of the same model, of another, of none."""


@dataclass
class _Rest:
    """What became of the modules outside of the trunks."""

    taken: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)

    def said(self) -> str:
        if not self.taken:
            return ''
        fresh = f'; fresh: {shorten(self.fresh, 4)}' if self.fresh else ''
        return f'; {len(self.taken)} tensors outside of it{fresh}'


def fill_base(
    model: nn.Module,
    paths: Iterable[str],
    file: str | os.PathLike,
    inflated: Iterable[str] = (),
) -> dict[str, Filled]:
    """Fill a model from a file of a whole model, or of its trunk alone.

    Every tensor of the trunks must be in the file. Of other modules those are filled
    whose names and shapes the file has; the rest keep their initial values and are
    named in the log.

    Args:
        model: An initialised model; nothing is injected yet.
        paths: Its trunks.
        file: In a format of :func:`mmpetl.models.load_base_weights`, or one that the
            trunk's class reads by its own ``init_cfg``; a path or an address.
        inflated: Those of the trunks that an image model may start.

    Returns:
        Where the values of each trunk come from.

    Raises:
        PETLError: The file is not there, or does not fill a trunk.
    """
    paths = tuple(paths)
    where = os.fspath(file)
    place = resolve(where)
    tensors = read_tensors(place).tensors
    if any('.petl.' in f'.{name}' for name in tensors):
        raise PETLError(
            f'{where} holds a delta (keys below petl), so it is no base; name the base '
            'that it was made on'
        )
    tensors = {name.removeprefix('module.'): value for name, value in tensors.items()}
    said, filled = [], {}
    for path in paths:
        trunk = model.get_submodule(path)
        how, fresh = _fill_trunk(trunk, path, tensors, where, path in inflated)
        said.append(f'{path} ({type(trunk).__name__}) {how}')
        filled[path] = Filled.of(base_name(where), fresh)
    rest = _fill_rest(model, paths, tensors)
    print_log(f'base {where}: {"; ".join(said)}{rest.said()}', logger='current')
    return filled


def _fill_trunk(
    trunk: nn.Module,
    path: str,
    tensors: Mapping[str, Tensor],
    where: str,
    inflate: bool,
) -> tuple[str, list[str]]:
    """Fill one trunk by the first way that fills all of it.

    Returns:
        How, for the log, and the norms behind it that the file does not hold.
    """
    spared = _copy_own_names(trunk, path, tensors)
    if spared is not None:
        return f'under its own names{_fresh(spared)}', spared
    try:
        report = load_base_weights(trunk, where, inflate=inflate)
        fresh = outer_norms(trunk, [name for name, _ in report.fresh])
        return report.summary(), fresh
    except PETLError as error:
        reason = error
    spared = _load_by_upstream(trunk, where)
    if spared is None:
        raise PETLError(str(reason)) from reason
    return f'as its own init_cfg loads it{_fresh(spared)}', spared


def _fresh(names: list[str]) -> str:
    return f' (fresh, so they train: {shorten(names, 4)})' if names else ''


def _copy_own_names(
    trunk: nn.Module, path: str, tensors: Mapping[str, Tensor]
) -> list[str] | None:
    """Copy where the file has every tensor; outer norms not in it, None if not."""
    wanted = dict(tensors_of(trunk))
    for prefix in (text.format(path=path) for text in PREFIXES):
        fits = {
            name: tensors[prefix + name]
            for name, value in wanted.items()
            if getattr(tensors.get(prefix + name), 'shape', None) == value.shape
        }
        missing = [name for name in wanted if name not in fits]
        spared = outer_norms(trunk, missing)
        # A file of the whole model has the norms of its own trunk.
        if missing and (len(spared) < len(missing) or prefix == f'{path}.'):
            continue
        check_values(fits, wanted)
        with torch.no_grad():
            for name, value in fits.items():
                wanted[name].copy_(value)
            for name, buffer in trunk.named_buffers():
                given = tensors.get(prefix + name)
                if given is not None and given.shape == buffer.shape:
                    buffer.copy_(given)
        return missing
    return None


def _load_by_upstream(trunk: nn.Module, where: str) -> list[str] | None:
    """Let the class read the file by its own conversions; None where that fails."""
    from mmengine.config import ConfigDict

    if not hasattr(trunk, 'init_cfg') or not hasattr(trunk, 'init_weights'):
        return None
    own, trunk.init_cfg = (
        trunk.init_cfg,
        ConfigDict(type='Pretrained', checkpoint=where),
    )
    for part in trunk.modules():
        if hasattr(part, '_is_init'):
            part._is_init = False
    watch = LoadWatch(trunk)
    try:
        trunk.init_weights()
    except Exception:  # whatever upstream makes of a foreign file
        return None
    finally:
        watch.stop()
        trunk.init_cfg = own
    missing = watch.missing()
    spared = outer_norms(trunk, missing)
    return spared if len(spared) == len(missing) and watch.loaded else None


def _fill_rest(
    model: nn.Module, paths: tuple[str, ...], tensors: Mapping[str, Tensor]
) -> _Rest:
    rest = _Rest()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if any(is_below(name, path) for path in paths):
                continue
            given = tensors.get(name)
            if given is None:
                rest.fresh.append(name)
            elif given.shape != value.shape:
                old, new = tuple(given.shape), tuple(value.shape)
                rest.fresh.append(f'{name} {old} -> {new}')
            else:
                check_values({name: given}, {name: value})
                value.copy_(given)
                rest.taken.append(name)
    # What a head never shares with a file of the trunk alone need not be listed.
    return rest
