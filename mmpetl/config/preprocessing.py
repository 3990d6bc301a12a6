"""From the named preset in a config to the plain pipelines that upstream reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmpetl.config.nodes import PHASES, datasets_of
from mmpetl.core import PETLError
from mmpetl.datasets.presets import Preprocessing, pipelines, statistics


def apply_preprocessing(config: Any, asked: Mapping[str, Any] | None = None) -> None:
    """Write out a config's ``preprocessing``: statistics and pipelines.

    Statistics and pipelines that the config already has stay, and the record then says
    so: ``normalisation=None``, ``augmentation=None``, as written in the config.

    Args:
        config: A config, changed in place. One without ``preprocessing`` stays.
        asked: What the user asked of the preset on the command line, if anything.

    Raises:
        PETLError: An unknown name, or a preset was asked for that the config's own
            pipelines would hide.
    """
    if config.get('preprocessing') is None:
        if asked:
            raise PETLError(
                'the config names no preprocessing, so there is none to change; '
                'its pipelines are written out'
            )
        return
    preset = Preprocessing.of(config.preprocessing)
    written = _write_statistics(config, preset), _write_pipelines(config, preset)
    geometry = {'augmentation', 'interpolation', 'size', 'cache'}
    for ours, keys in zip(written, ({'normalisation'}, geometry), strict=True):
        hidden = keys & set(asked or ())
        if hidden and not ours:
            raise PETLError(
                f'preprocessing.{min(hidden)} has no effect: the config writes its '
                'own; take that out of it, or change it there'
            )
    facts = preset.facts()
    if not written[0]:
        facts['normalisation'] = None
    if not written[1]:
        facts = {'normalisation': facts['normalisation'], 'augmentation': None}
    config.preprocessing = facts


def _write_statistics(config: Any, preset: Preprocessing) -> bool:
    """Whether the model normalises as the preset says."""
    if preset.normalisation is None:
        return False
    wanted = statistics(preset.normalisation)
    # A preprocessor of dense tasks carries keys of its own, so statistics are merged.
    node = config.model.setdefault('data_preprocessor', {})
    if node is None:
        node = config.model.data_preprocessor = {}
    for key, value in wanted.items():
        node.setdefault(key, value)
    return all(_plain(node[key]) == value for key, value in wanted.items())


def _write_pipelines(config: Any, preset: Preprocessing) -> bool:
    """Whether every loader's pipeline is the preset's."""
    if preset.augmentation is None:
        return False
    ours = True
    train, test = pipelines(preset)
    for phase in PHASES:
        wanted = train if phase == 'train' else test
        for dataset in datasets_of(config, phase):
            ours &= _plain(dataset.setdefault('pipeline', wanted)) == _plain(wanted)
    return ours


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value
