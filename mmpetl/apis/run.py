"""Configs to runs: what the tools and notebooks call."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mmpetl.core import PETLError, registered_methods

Device = Literal['auto', 'cpu', 'cuda']


@contextmanager
def cli_errors() -> Iterator[None]:
    """Turn bad input into one line on stderr and a non-zero exit code.

    Anything that is not the user's to mend keeps its traceback.
    """
    try:
        yield
    except (PETLError, FileNotFoundError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(
            'error: interrupted; --resume continues from the last checkpoint',
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def one_line(error: BaseException) -> str:
    """The message of an error, also of one that a data worker has passed on."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if 'Original Traceback' in str(error) else ' '.join(lines)
    name = f'{type(error).__name__}: '
    return text.partition(name)[2] or text


def load_config(
    path: str | os.PathLike,
    options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    *,
    protocol: str | None = None,
    stage: str | None = None,
) -> Any:
    """Read a config, write it out in plain upstream terms, say where its run lives.

    Configs are Python and run when they are read: use only those you trust.

    Args:
        path: A config file, or a row of a table: ``configs/lora/vtab/svhn.py``.
        options: Dotted keys that override it.
        work_dir: Folder of the run; by default that of the config, or
            ``work_dirs/<method>/<dataset>``.
        protocol: ``honest`` or ``published``; by default the config's, or ``honest``.
        stage: ``final`` or ``tune``; by default ``final``.

    Raises:
        PETLError: There is no such file, or a name in it is unknown.
    """
    from mmpetl.apis.compose import read_config

    path = Path(path)
    return finish_config(
        read_config(path), options, work_dir, path=path, protocol=protocol, stage=stage
    )


def finish_config(
    config: Any,
    options: Mapping[str, Any] | None = None,
    work_dir: str | os.PathLike | None = None,
    *,
    path: Path | None = None,
    name: str | None = None,
    protocol: str | None = None,
    stage: str | None = None,
) -> Any:
    """Write out dataset, protocol and preprocessing of a config, then its options.

    A config with a ``stage`` has been written out before (a run's own copy) and keeps
    what it says. For the rest see :func:`load_config`.

    Args:
        config: As it was read; changed in place.
        options: Dotted keys that override it.
        work_dir: Folder of the run.
        path: Where it was read, from which the folder follows.
        name: ``<method>/<dataset>``, where there is no path.
        protocol: See :func:`load_config`.
        stage: See :func:`load_config`.
    """
    from mmpetl.apis.compose import FIRST, fill_dataset
    from mmpetl.apis.heads import fit_head
    from mmpetl.apis.preprocessing import apply_preprocessing
    from mmpetl.apis.protocols import apply_schedule, check_names, overlay

    options = dict(options or {})
    first = {k: options.pop(k) for k in list(options) if k.partition('.')[0] in FIRST}
    protocol = _one_of('protocol', protocol, first.pop('protocol', None))
    stage = _one_of('stage', stage, first.pop('stage', None))
    if 'stage' in config:
        _refuse_changes(config, {'protocol': protocol, 'stage': stage}, first)
    elif config.get('model'):
        protocol = protocol or config.get('protocol') or 'honest'
        stage = stage or 'final'
        check_names(protocol, stage)
        overlay(config, protocol, stage)
        config.merge_from_dict(first)
        fill_dataset(config)
        asked = [k.partition('.')[2] for k in first if k.startswith('preprocessing')]
        apply_preprocessing(config, asked)
        apply_schedule(config)
    config.merge_from_dict(options)
    _check_method(config)
    fit_head(config)
    if work_dir is not None:
        config.work_dir = str(work_dir)
    elif not config.get('work_dir'):
        name = name or run_name(config, path)
        if first.get('dataset'):  # another set in the same recipe, another folder
            name = f'{name.rpartition("/")[0]}/{first["dataset"]}'
        marks = {protocol, stage} - {None, 'honest', 'final'}
        config.work_dir = str(Path('work_dirs') / '-'.join((name, *sorted(marks))))
    return config


def _one_of(key: str, given: str | None, option: str | None) -> str | None:
    """A name that may be given as an argument or among the options, not as both."""
    if given and option and given != option:
        raise PETLError(f'{key} is {given} and, among the options, {option}; say one')
    return given or option


def _refuse_changes(
    config: Any, names: Mapping[str, str | None], first: Mapping[str, Any]
) -> None:
    """Raise where a config that is written out is asked to become another."""
    for key, value in {**names, **first}.items():
        here = config
        for part in key.split('.'):
            here = (here or {}).get(part)
        if value is not None and here != value:
            raise PETLError(
                f'{key}={value} cannot change a config that is written out, where it '
                f'is {here}; start from the recipe'
            )


def run_name(config: Any, path: Path) -> str:
    """``<method>/<dataset>`` of a config, by its method and its place in configs/."""
    method = _method_of(config)
    known = registered_methods()
    stem = known[method['type'].rpartition('.')[2]].stem() if method else 'none'
    parts = path.with_suffix('').parts
    if 'configs' in parts:
        parts = parts[len(parts) - parts[::-1].index('configs') :]
    else:
        parts = parts[-1:]
    stems = {cls.stem() for cls in known.values()}
    if len(parts) > 1 and parts[0] in stems | {'recipes'}:
        parts = parts[1:]
    return '/'.join((stem, *parts))


def _method_of(config: Any) -> Mapping[str, Any] | None:
    backbone = config.get('model', {}).get('backbone', {})
    method = backbone.get('method') if isinstance(backbone, Mapping) else None
    return {'type': method} if isinstance(method, str) else method


def _check_method(config: Any) -> None:
    """Name an unknown method or argument before anything heavy is imported."""
    from mmpetl.core import build_method

    method = _method_of(config)
    if method is not None:
        build_method(method)


def choose_device(device: Device = 'auto') -> None:
    """Take the device that was asked for, or raise.

    Raises:
        PETLError: A GPU was asked for and none is there.
    """
    if device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    elif device == 'cuda':
        import torch

        if not torch.cuda.is_available():
            raise PETLError(
                'device cuda was asked for, but torch sees no GPU; use --device cpu, '
                'or check the driver (python -m mmpetl.doctor)'
            )


def build_runner(
    config: Any,
    *,
    launcher: str = 'none',
    check_data: tuple[str, ...] = ('train', 'val', 'test'),
) -> Any:
    """A Runner of MMEngine for a config.

    Args:
        config: A config, as :func:`load_config` gives it.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
        check_data: Phases whose datasets are looked at first: annotation files
            and folders, listed files, labels in range.

    Raises:
        PETLError: Something the config names is missing or does not fit.
    """
    from mmengine.dist import is_main_process
    from mmengine.registry import RUNNERS, init_default_scope
    from mmengine.runner import Runner

    from mmpetl.compat import init_dist_any
    from mmpetl.datasets.reading import guard_runner

    config.launcher = launcher
    init_dist_any(launcher)
    init_default_scope(config.get('default_scope', 'mmengine'))
    if check_data:
        from mmpetl.datasets.checks import check_config

        if is_main_process():
            check_config(config, check_data)
    if 'runner_type' in config:
        runner = RUNNERS.build(config)
    else:
        runner = Runner.from_cfg(config)
    # Loaders are built later; a corrupt file is then named in one line.
    guard_runner(runner)
    return runner


def train(config: Any, **kwargs: Any) -> Any:
    """Train as a config says; returns the Runner."""
    kwargs.setdefault('check_data', ('train', 'val'))
    runner = build_runner(config, **kwargs)
    runner.train()
    return runner


def test(config: Any, checkpoint: str | os.PathLike, **kwargs: Any) -> dict[str, float]:
    """Evaluate a run checkpoint or a published delta; returns the metrics."""
    kwargs.setdefault('check_data', ('test',))
    checkpoint = Path(checkpoint)
    if not checkpoint.is_file():
        raise PETLError(f'there is no checkpoint {checkpoint}')
    if checkpoint.suffix == '.pth':
        config.load_from = str(checkpoint)
        return build_runner(config, **kwargs).test()
    from mmpetl.apis.delta import load_delta
    from mmpetl.engine.hooks.common import plain_model

    runner = build_runner(config, **kwargs)
    load_delta(plain_model(runner), checkpoint)
    return runner.test()
