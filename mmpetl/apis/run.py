"""Configs to runs: what the tools and notebooks call."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mmpetl.core import PETLError, registered_methods, suggest

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
) -> Any:
    """Read a config and say where its run lives.

    Configs are Python and run when they are read: use only those you trust.

    Args:
        path: A config file.
        options: Dotted keys that override it.
        work_dir: Folder of the run; by default that of the config, or
            ``work_dirs/<method>/<dataset>``.

    Raises:
        PETLError: There is no such file.
    """
    from mmengine.config import Config

    from mmpetl.apis.heads import fit_head

    path = Path(path)
    if not path.is_file():
        root = next((p for p in path.parents if p.is_dir()), Path('.'))
        near = suggest(path.name, {p.name for p in root.rglob('*.py')})
        raise PETLError(f'there is no config {path}.{near}')
    # `custom_imports` of a config comes too late for its own types.
    config = Config.fromfile(path)
    if options:
        config.merge_from_dict(dict(options))
    _check_method(config)
    fit_head(config)
    if work_dir is not None:
        config.work_dir = str(work_dir)
    elif not config.get('work_dir'):
        config.work_dir = str(Path('work_dirs') / run_name(config, path))
    return config


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
