"""Configs to runs: what the tools and notebooks call."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from mmpetl.compat import init_dist_any
from mmpetl.config.batch import join_passes, missed_batch
from mmpetl.config.heads import check_metrics
from mmpetl.config.known import SCOPES
from mmpetl.config.protocols import check_honest, without_validation
from mmpetl.config.scope import import_scope
from mmpetl.core import PETLError, find_injected
from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'finish_config': 'mmpetl.config.load',
        'load_config': 'mmpetl.config.load',
        'run_name': 'mmpetl.config.load',
    },
)

Device = Literal['auto', 'cpu', 'cuda']


@contextmanager
def cli_errors(of_run: bool = False) -> Iterator[None]:
    """Turn bad input into one line on stderr and a non-zero exit code.

    The code is 1; for a run that a signal stopped it is 128 and the signal's number, as
    of shells: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP. Anything that is not the
    user's to mend keeps its traceback; what a config's values raise before the first
    step of a run is the user's, and ``MMPETL_TRACEBACK=1`` shows where it comes from.

    Args:
        of_run: Whether the command trains or tests as a config says.
    """
    try:
        yield
    except (PETLError, OSError, MemoryError) as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        raise SystemExit(1) from None
    except _OF_VALUES as error:
        if isinstance(error, KeyError) and 'registry' in str(error):
            # MMEngine's registries say so that a config names no known type.
            print(f'error: {one_line(error)}', file=sys.stderr)
            raise SystemExit(1) from None
        plain = os.environ.get('MMPETL_TRACEBACK', '0') in ('', '0')
        if not (of_run and plain) or _is_behind_a_step(error):
            raise
        print(
            f'error: the run cannot begin as its config says: {type(error).__name__}: '
            f'{one_line(error)[:600]} (MMPETL_TRACEBACK=1 shows where)',
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:
        # A run that a signal has stopped says which, and what has been saved.
        said = str(error) or 'interrupted; --resume continues from the last checkpoint'
        print(f'error: {said}', file=sys.stderr, flush=True)
        raise SystemExit(getattr(error, 'code', 130)) from None


_OF_VALUES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What wrong values of a config raise where they are built or first used."""


def _is_behind_a_step(error: BaseException) -> bool:
    from mmpetl.engine.first_step import is_behind_a_step

    return is_behind_a_step(error)


def one_line(error: BaseException) -> str:
    """The message of an error, also of one that a data worker has passed on."""
    if isinstance(error, MemoryError) and not str(error):
        return 'out of memory; take a smaller batch or fewer data workers'
    whole = str(error.args[0]) if isinstance(error, KeyError) else str(error)
    lines = [line for line in whole.splitlines() if line.strip()]
    text = lines[-1] if 'Original Traceback' in whole else ' '.join(lines)
    name = f'{type(error).__name__}: '
    return text.partition(name)[2] or text


def choose_device(device: Device = 'auto') -> None:
    """Take the device that was asked for, or raise.

    Raises:
        PETLError: A GPU was asked for and none is there.
    """
    if device == 'cpu':
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    elif device == 'cuda':
        if not torch.cuda.is_available():
            raise PETLError(
                'device cuda was asked for, but torch sees no GPU; use --device cpu, '
                'or check the driver (mmpetl doctor)'
            )


def build_runner(
    config: Any,
    *,
    launcher: str = 'none',
    check_data: tuple[str, ...] = ('train', 'val', 'test'),
    test_data: Any = None,
) -> Any:
    """A Runner of MMEngine for a config.

    Where the config has a protocol, the run keeps what its phases read, and the honest
    one refuses phases that overlap before the first step
    (:class:`mmpetl.engine.hooks.DataReadHook`).

    Args:
        config: A config, as :func:`load_config` gives it.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
        check_data: Phases whose datasets are looked at first: annotation files
            and folders, listed files, labels in range. With ``'train'`` among them,
            schedules are looked at too.
        test_data: Config of the data set that is tested in the end, where the config
            has none.

    Raises:
        PETLError: Something the config names is missing or does not fit.
    """
    from mmengine.dist import is_main_process
    from mmengine.registry import RUNNERS, init_default_scope
    from mmengine.runner import Runner

    from mmpetl.datasets.reading import guard_runner
    from mmpetl.engine.allocator import keep_freed_memory
    from mmpetl.engine.full_disk import let_log_fail, logs_may_fail
    from mmpetl.engine.run_names import named_apart
    from mmpetl.engine.schedule_nodes import check_schedules
    from mmpetl.engine.zero import check_runner

    check_runner(config)
    if not torch.cuda.is_available():
        keep_freed_memory()
    config.launcher = launcher
    _set_wrapper(config, launcher)
    init_dist_any(launcher)
    scope = config.get('default_scope', 'mmengine')
    if scope in SCOPES:  # a package of the user's own need not have registries
        import_scope(config)
    init_default_scope(scope)
    remarks: list[str] = []
    if 'train' in check_data:
        check_schedules(config.get('param_scheduler'))
    if check_data:
        from mmpetl.datasets.checks import check_config

        check_metrics(config, check_data)
        if is_main_process():
            check_config(config, check_data, remarks)
    apart = named_apart(config)
    with logs_may_fail():
        if 'runner_type' in config:
            runner = RUNNERS.build(apart)
        else:
            runner = Runner.from_cfg(apart)
    let_log_fail(runner.logger)
    if config.get('protocol'):
        from mmpetl.engine import DataReadHook

        runner.register_hook(DataReadHook(test_data))
    if config.get('cache_features'):
        from mmpetl.engine.hooks.feature_cache import with_features

        with_features(runner, config.cache_features)
    if config.get('shard_base'):
        from mmpetl.engine import ShardBaseHook

        runner.register_hook(ShardBaseHook())
    if config.get('offload_activations'):
        from mmpetl.engine import OffloadHook

        runner.register_hook(OffloadHook())
    if config.get('deepspeed'):
        from mmpetl.engine import DeepSpeedHook

        runner.register_hook(DeepSpeedHook(config.deepspeed))
    # Loaders are built later; a corrupt file is then named in one line.
    guard_runner(runner)
    for line in remarks:
        runner.logger.warning(line)
    return runner


def _set_wrapper(config: Any, launcher: str) -> None:
    """Let a config say how its model is wrapped in several processes."""
    if launcher == 'none':
        return
    if config.get('deepspeed'):
        config.model_wrapper_cfg = {'type': 'mmpetl.ZeroModel'}
    elif not torch.cuda.is_available():
        # MMEngine's own wrapper names a GPU by its number.
        wrapper = {'type': 'mmpetl.PETLDistributedDataParallel'}
        config.model_wrapper_cfg = config.get('model_wrapper_cfg') or wrapper


def _needs(config: Any, phase: str) -> None:
    """Raise PETLError unless a config has a phase."""
    if not config.get(f'{phase}_dataloader'):
        stage = config.get('stage')
        why = f' (its stage is {stage})' if stage not in (None, 'final') else ''
        raise PETLError(
            f'the config has no {phase}_dataloader{why}, so there is nothing to '
            f'{phase}; name one, or take a recipe'
        )


def train(config: Any, **kwargs: Any) -> Any:
    """Train as a config says; returns the Runner.

    The work folder is held meanwhile. SIGTERM, SIGHUP and Ctrl-C save the run as it
    stands and end it (:mod:`mmpetl.engine.stopping`).

    Raises:
        PETLError: Something the config names is missing or does not fit, a run is to be
            resumed with other settings or from another state than it has, another run
            is at work in the folder, or the folder cannot be written to.
        mmpetl.engine.stopping.Stopped: A signal came; a KeyboardInterrupt.
    """
    from mmengine.dist import get_world_size

    from mmpetl.apis.resume import (
        check_resume,
        find_checkpoint,
        goes_on_by_passes,
    )
    from mmpetl.engine.first_step import behind_steps_marked
    from mmpetl.engine.folder_lock import hold_for_run
    from mmpetl.engine.full_disk import writes_named
    from mmpetl.engine.hooks.common import plain_model
    from mmpetl.engine.stopping import stop_on_signals, train_until_stopped
    from mmpetl.engine.zero import check_zero

    _needs(config, 'train')
    check_honest(config)
    kwargs.setdefault('check_data', ('train', 'val'))
    init_dist_any(kwargs.get('launcher', 'none'))
    check_zero(config, get_world_size())
    folder = config.work_dir
    with stop_on_signals() as stop, hold_for_run(folder), writes_named(folder):
        found = find_checkpoint(config)
        if not goes_on_by_passes(config):
            join_passes(config, get_world_size())
        said = check_resume(config)
        runner = build_runner(config, **kwargs)
        for line in filter(None, [*found, missed_batch(config, runner.world_size)]):
            runner.logger.warning(line)
        for line in filter(None, [*said, without_validation(config)]):
            runner.logger.info(line)
        if not find_injected(plain_model(runner)):
            runner.logger.warning(
                'the model has no method, so all of it trains, as upstream trains it; '
                '--method LoRA puts one in'
            )
        with behind_steps_marked(runner):
            train_until_stopped(runner, stop)
    return runner


def test(config: Any, checkpoint: str | os.PathLike, **kwargs: Any) -> dict[str, float]:
    """Evaluate a run's checkpoint or a published delta, by path or name.

    Returns:
        The metrics.

    Raises:
        PETLError: Something the config names is missing or does not fit.
    """
    _needs(config, 'test')
    kwargs.setdefault('check_data', ('test',))
    from mmpetl.apis.delta import check_complete, load_delta, read_plain
    from mmpetl.apis.names import locate
    from mmpetl.engine import DeltaCheckpointHook
    from mmpetl.engine.first_step import behind_steps_marked
    from mmpetl.engine.hooks.common import plain_model

    checkpoint = locate(checkpoint)
    if not checkpoint.is_file():
        raise PETLError(f'there is no checkpoint {checkpoint}')
    ours = checkpoint.suffix != '.pth'
    if not ours:
        config.load_from = str(checkpoint)
    runner = build_runner(config, **kwargs)
    model = plain_model(runner)
    if not ours:
        state, meta = read_plain(model, checkpoint)
        if 'mmpetl' not in meta:  # a delta is held to the model where it is loaded
            lacking = check_complete(model, state, checkpoint)
            if lacking:
                runner.logger.warning(lacking)
    checks = any(isinstance(hook, DeltaCheckpointHook) for hook in runner.hooks)
    # MMEngine itself would load a delta of anything, and leave out what does not fit.
    if ours or find_injected(model) and not checks:
        load_delta(model, checkpoint)
    with behind_steps_marked(runner):
        return runner.test()
