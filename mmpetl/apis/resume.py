"""Whether a run goes on with the settings that it began with.

MMEngine takes rates, schedules and counts of a resumed run from the checkpoint, and the
rest from the config. Settings that changed in between would count in part, and nobody
would be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpetl.apis.delta import load_tensors
from mmpetl.config.batch import is_accumulated
from mmpetl.config.text import read_text
from mmpetl.core import PETLError
from mmpetl.engine.latest import file_to_resume, is_remote, newest_checkpoint
from mmpetl.engine.resumable import check_resumable
from mmpetl.engine.runner import TuningRunner, safe_config

UNSAID = ('resume', 'load_from', 'launcher', 'runner_type', 'custom_imports')
"""Keys that resuming changes itself, or that have no effect of their own."""

HARMLESS = (
    'work_dir',
    'experiment_name',
    'log_level',
    'log_processor',
    'visualizer',
    'vis_backends',
    'env_cfg',
    'model_wrapper_cfg',
    'shard_base',
    'deepspeed',
    'offload_activations',
    'cache_features.folder',
    'cache_features.limit_gib',
    'default_hooks.logger',
    'default_hooks.timer',
    'default_hooks.visualization',
    'default_hooks.checkpoint',
    'train_cfg.val_interval',
    'train_cfg.val_begin',
    'train_dataloader.num_workers',
    'train_dataloader.persistent_workers',
    'train_dataloader.pin_memory',
    'train_dataloader.prefetch_factor',
    'val_dataloader',
    'val_evaluator',
    'val_cfg',
    'test_dataloader',
    'test_evaluator',
    'test_cfg',
    'test_pipeline',
)
"""Keys that may change, with all below them: they decide nothing that is trained."""

LENGTHS = ('train_cfg.max_epochs', 'train_cfg.max_iters')
"""Keys that may grow: the run then goes on for longer, by the schedule that it has."""

WATCHERS = ('EfficiencyHook', 'PredictionsHook', 'RunLogHook', 'BaseGuardHook')
"""Hooks of ours that only watch, so that they may come and go."""


def check_resume(config: Any) -> list[str]:
    """Compare a config with that of the checkpoint it resumes from.

    A run without a seed of its own goes on with the one that it drew.

    Args:
        config: A config, as :func:`mmpetl.apis.load_config` gives it; its seed is
            filled in.

    Returns:
        Lines to log: what differs without harm. None where nothing is resumed.

    Raises:
        PETLError: A setting differs that decides what is trained, or the checkpoint is
            damaged or lacks what a run needs to go on.
    """
    path = file_to_resume(config)
    if path is None:
        return []
    content = load_tensors(path)
    meta = content.get('meta') if isinstance(content, dict) else None
    text = meta.get('cfg') if isinstance(meta, dict) else None
    drawn = meta.get('seed') if isinstance(meta, dict) else None
    randomness = dict(config.get('randomness') or {})
    seed = randomness.get('seed')
    if seed is None and isinstance(drawn, int):
        # Drawn anew, it would draw another base where no file holds one.
        seed = drawn
        config.randomness = {**randomness, 'seed': seed}
    said = _compare(config, path, text if isinstance(text, str) else '', drawn)
    check_resumable(content, str(path), seed)  # its lines come with the resumption
    return said


def goes_on_by_passes(config: Any) -> bool:
    """Whether a run is resumed that counts passes where it might count steps.

    One that was begun before :func:`mmpetl.config.batch.join_passes` does.
    """
    path = file_to_resume(config)
    content = None if path is None else load_tensors(path)
    meta = content.get('meta') if isinstance(content, dict) else None
    text = meta.get('cfg') if isinstance(meta, dict) else None
    if not isinstance(text, str):
        return False
    try:
        before = read_text(text)
    except PETLError:
        return False  # the comparison says it
    own = (before.get('optim_wrapper') or {}).get('accumulative_counts') or 1
    return own > 1 and not is_accumulated(before)


def find_checkpoint(config: Any) -> list[str]:
    """Let a config name the file that it goes on from.

    Args:
        config: Where it resumes and names no file, ``load_from`` becomes the newest
            whole checkpoint of its work folder.

    Returns:
        Lines to log: what was wrong with the newest, or that the run begins anew.

    Raises:
        PETLError: There are checkpoints, and none of them is whole.
    """
    folder = Path(config.work_dir)
    hook = (config.get('default_hooks') or {}).get('checkpoint') or {}
    if is_remote(hook.get('out_dir')):
        return []
    if not config.get('resume'):
        there = sorted(p.name for p in folder.glob('*.pth') if _of_run(p.name))
        if not there or config.get('load_from'):
            return []
        more = f' and {len(there) - 1} more' if len(there) > 1 else ''
        return [
            f'{folder} holds checkpoints of an earlier run ({there[0]}{more}), which '
            'this one replaces; --resume would go on with that run'
        ]
    if config.get('load_from'):
        return []
    path, wrong = newest_checkpoint(folder, hook)
    if path is not None:
        config.load_from = str(path)
    elif not (folder / 'search.jsonl').is_file():  # a search goes on from its record
        wrong = (
            f'there is no checkpoint in {folder}, so the run begins at the beginning'
        )
    return [wrong] if wrong else []


def _of_run(name: str) -> bool:
    return name.startswith(('epoch_', 'iter_', 'best_', 'stopped_at_'))


def _compare(config: Any, path: Path, text: str, seed: Any) -> list[str]:
    """Compare settings; the lines of :func:`check_resume`.

    Args:
        config: That of the run now.
        path: The checkpoint.
        text: The config in it.
        seed: The seed of its run, which a config may have left to be drawn.
    """
    was = read_text(text)
    if not was:
        return [f'{path} does not say its settings, so they are not compared']
    randomness = was.get('randomness') or {}
    unsaid = isinstance(randomness, dict) and randomness.get('seed') is None
    if unsaid and isinstance(seed, int):
        was['randomness'] = {**randomness, 'seed': seed}
    now = config
    if config.get('runner_type') == f'mmpetl.{TuningRunner.__name__}':
        now, _ = safe_config(config)
    harmless, deciding = [], []
    for key, old, new in differences(was, read_text(now.pretty_text)):
        said = f'{key} is {_short(new)}, was {_short(old)}'
        (harmless if _may_change(key, old, new) else deciding).append(said)
    if deciding:
        more = f' (and {len(deciding) - 3} more)' if len(deciding) > 3 else ''
        raise PETLError(
            f'{path.name} cannot be resumed with other settings: '
            f'{"; ".join(deciding[:3])}{more}. Give those of the run again, or begin '
            f'another run in another work_dir (load_from={path} takes its weights)'
        )
    return [f'resumed with another setting: {line}' for line in harmless]


class _Absent:
    def __repr__(self) -> str:
        return 'absent'


ABSENT = _Absent()


def differences(
    was: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values.

    Args:
        was: Values of a config, as :func:`read_text` gives them.
        now: Those of another.
    """
    for key in UNSAID:
        was, now = ({k: v for k, v in c.items() if k != key} for c in (was, now))
    was, now = (
        {**c, 'custom_hooks': [h for h in c.get('custom_hooks') or () if _acts(h)]}
        for c in (was, now)
    )
    yield from _differ('', was, now)


def _acts(hook: Any) -> bool:
    """Whether a hook may decide what is trained."""
    kind = hook.get('type') if isinstance(hook, dict) else hook
    return str(kind).rpartition('.')[2] not in WATCHERS


def _differ(path: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [*was, *(k for k in now if k not in was)]
        pairs = [(k, was.get(k, ABSENT), now.get(k, ABSENT)) for k in keys]
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        pairs = [(i, *pair) for i, pair in enumerate(zip(was, now, strict=True))]
    else:
        # A phase that is None and one that is not there are the same.
        if was != now and {repr(was), repr(now)} != {'None', 'absent'}:
            yield path, was, now
        return
    for key, old, new in pairs:
        yield from _differ(f'{path}.{key}'.lstrip('.'), old, new)


def _may_change(key: str, old: Any, new: Any) -> bool:
    if any(key == name or key.startswith(f'{name}.') for name in HARMLESS):
        return True
    if key in LENGTHS:
        return isinstance(old, int) and isinstance(new, int) and new > old
    if key.endswith('data_root'):
        return True
    if key == 'cache_features':
        # Rows are those of the trunk, unless they may differ.
        said = [value for value in (old, new) if isinstance(value, Mapping)]
        return not any(value.get('tolerance') for value in said)
    # Files and folders that have moved, such as those below MMPETL_WEIGHTS.
    paths = all(isinstance(v, str) and '/' in v for v in (old, new))
    return paths and Path(old).name == Path(new).name


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f'{text[:37]}...'
