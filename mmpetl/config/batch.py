"""The batch of a recipe: reached by accumulation, by several processes, or by both.

A recipe says how many samples a step of its optimizer takes, ``batch = 16``, beside the
rate that belongs to it. The loader's ``batch_size`` is what one process takes in one
pass. What is missing between the two is made up for here::

    batch = batch_size x processes x passes

A recipe without ``batch`` takes ``batch_size`` samples in a step, in any number of
processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmpetl.core import PETLError

SCHEDULERS = 'mmpetl.AccumulatingSchedulerHook'
SAMPLER = 'mmpetl.SharesSampler'
MOST_PROCESSES = 1024

BY_PASS = ('max_iters', 'val_interval', 'val_begin')
"""What an iteration-based loop counts in passes."""


@dataclass(frozen=True)
class Shares:
    """How a step of the optimizer is put together.

    Attributes:
        samples: Samples of a pass of one process.
        processes: Processes.
        passes: Passes of each process.
    """

    samples: int
    processes: int = 1
    passes: int = 1

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return self.samples * self.processes * self.passes

    def __str__(self) -> str:
        parts = [f'{self.samples} in a pass']
        if self.processes > 1:
            parts.append(f'{self.processes} processes')
        if self.passes > 1:
            parts.append(f'{self.passes} passes accumulated')
        return f'{self.batch} = {" x ".join(parts)}'


def shares_of(config: Any) -> Shares | None:
    """How a step of a config is put together; None without a batch size.

    Args:
        config: One that :func:`reach_batch` has seen, or any other.
    """
    loader = config.get('train_dataloader')
    samples = loader.get('batch_size') if isinstance(loader, Mapping) else None
    if not isinstance(samples, int):
        return None
    optim = config.get('optim_wrapper') or {}
    passes = optim.get('accumulative_counts', 1)
    return Shares(samples, config.get('processes', 1), passes)


def missed_batch(config: Any, processes: int) -> str | None:
    """What to say of a run that does not train at the batch of its recipe, in a line.

    Args:
        config: A config as it is run.
        processes: Processes that train it.
    """
    batch, shares = config.get('batch'), shares_of(config)
    if not isinstance(batch, int) or shares is None:
        return None
    found = Shares(shares.samples, processes, shares.passes).batch
    if found == batch:
        return None
    if (config.get('auto_scale_lr') or {}).get('enable'):
        return (
            f'a step takes {found} samples, not {batch} as in the recipe, and the rate '
            'follows (auto_scale_lr)'
        )
    return (
        f'a step takes {found} samples, and the rate of the recipe belongs to {batch}; '
        'begin more processes, or change train_dataloader.batch_size, '
        'optim_wrapper.accumulative_counts or the rate (batch says what is meant)'
    )


def check_processes(processes: Any) -> int:
    """The number of processes of a job, if it is one.

    Raises:
        PETLError: It is none.
    """
    whole = isinstance(processes, int) and not isinstance(processes, bool)
    if not whole or not 1 <= processes <= MOST_PROCESSES:
        raise PETLError(
            f'processes is a whole number from 1 to {MOST_PROCESSES}, got {processes!r}'
        )
    return processes


def reach_batch(config: Any, processes: int = 1) -> None:
    """Let a config train at the batch of its recipe; nothing changes where it does.

    Passes are accumulated where processes and the loader's batch size do not make up
    the batch. An iteration-based loop, which counts passes, gets as many more of them;
    schedules move on with the steps of the optimizer, and a pass reads what one of so
    many processes would. It is the same where ``optim_wrapper.accumulative_counts``
    says the passes beside a ``batch``; without one, they are as upstream counts them.

    Args:
        config: A config as it is written out; changed in place.
        processes: How many processes will train it.

    Raises:
        PETLError: The batch is no whole number of passes, or something in the config
            counts passes and cannot be changed.
    """
    check_processes(processes)
    loader = config.get('train_dataloader')
    samples = loader.get('batch_size') if isinstance(loader, Mapping) else None
    if not isinstance(samples, int):
        if processes > 1:
            raise PETLError(
                f'{processes} processes share a batch, and the config has no '
                'train_dataloader.batch_size'
            )
        return
    own = (config.get('optim_wrapper') or {}).get('accumulative_counts') or 1
    as_upstream = own > 1 and not config.get('batch')
    batch = config.get('batch') or samples * own
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise PETLError(f'batch is a whole number of samples >= 1, got {batch!r}')
    if own > 1:
        if samples * own * processes != batch:
            raise PETLError(
                f'optim_wrapper.accumulative_counts={own} makes the batch '
                f'{samples * own * processes}, and that of the recipe is {batch}; '
                'leave it out, or set batch to what is meant'
            )
    else:
        _set_samples(loader, batch, samples, processes)
    if processes > 1:
        config.processes = processes
    if as_upstream or is_accumulated(config):
        return
    passes = batch // (loader['batch_size'] * processes)
    if passes > 1:
        _accumulate(config, passes)
        _fix_rate(config, batch)


def join_passes(config: Any, processes: int) -> None:
    """Let passes that a config says itself be those of :func:`reach_batch`.

    Where they make up the batch of the recipe, rate, length and schedules go by steps
    of the optimizer then; else they count as upstream counts them.

    Args:
        config: A config as it is run; changed in place.
        processes: Processes that train it.

    Raises:
        PETLError: The rate is to follow the batch, of which MMEngine sees a pass.
    """
    own = (config.get('optim_wrapper') or {}).get('accumulative_counts') or 1
    if own == 1 or is_accumulated(config):
        return
    batch, shares = config.get('batch'), shares_of(config)
    if batch and shares and batch == Shares(shares.samples, processes, own).batch:
        reach_batch(config, processes)
    elif (config.get('auto_scale_lr') or {}).get('enable'):
        raise PETLError(
            'auto_scale_lr counts the samples of a pass, and a step is '
            f'{own} of them (optim_wrapper.accumulative_counts), which '
            f'{"is not the batch of the recipe" if batch else "no batch speaks of"}; '
            'set batch to the samples of a step, or the rate itself and '
            'auto_scale_lr.enable=False'
        )


def _set_samples(loader: Any, batch: int, samples: int, processes: int) -> None:
    """Let a pass be no more than a process's share, and the batch whole passes."""
    share, rest = divmod(batch, processes)
    if not rest:
        samples = min(samples, share)
    if rest or share % samples:
        given = f'{samples} x {processes} processes' if processes > 1 else f'{samples}'
        raise PETLError(
            f'the batch of the recipe is {batch} samples, which {given} in a pass do '
            f'not make up: it would be {samples * processes}; choose processes and '
            'train_dataloader.batch_size that divide it, or set batch to what is meant'
        )
    loader['batch_size'] = samples


def _fix_rate(config: Any, batch: int) -> None:
    """Let a rate that follows the batch follow the one of a step, not of a pass."""
    scale = config.get('auto_scale_lr') or {}
    if not scale.get('enable'):
        return
    factor = batch / scale['base_batch_size']
    if factor != 1:
        optimizer = config.optim_wrapper.optimizer
        optimizer['lr'] = optimizer['lr'] * factor
    config.auto_scale_lr = {**scale, 'enable': False}


def is_accumulated(config: Any) -> bool:
    """Whether :func:`reach_batch` has made the passes of a config already."""
    hook = (config.get('default_hooks') or {}).get('param_scheduler') or {}
    return isinstance(hook, Mapping) and hook.get('type') == SCHEDULERS


def _accumulate(config: Any, passes: int) -> None:
    _refuse_counters(config)
    config.optim_wrapper['accumulative_counts'] = passes
    loop = config.train_cfg
    by_pass = bool(loop.get('max_iters')) and not loop.get('max_epochs')
    if by_pass:
        for key in BY_PASS:
            if loop.get(key) is not None:
                loop[key] = loop[key] * passes
        if loop.get('dynamic_intervals'):
            loop['dynamic_intervals'] = [
                (at * passes, every * passes) for at, every in loop['dynamic_intervals']
            ]
    hooks = config.setdefault('default_hooks', {})
    saves = hooks.get('checkpoint') or {}
    if not saves.get('by_epoch', True):
        for key in ('interval', 'save_begin'):
            if saves.get(key, -1) > 0:
                saves[key] = saves[key] * passes
    hooks['param_scheduler'] = {'type': SCHEDULERS, 'passes': passes}
    loader = config.train_dataloader
    loader['batch_sampler'] = {
        'type': SAMPLER,
        'passes': passes,
        'inner': loader.get('batch_sampler'),
        'drop_last': bool(loader.pop('drop_last', False)),
    }


def _refuse_counters(config: Any) -> None:
    """Raise PETLError where a hook would count passes for steps."""
    for hook in config.get('custom_hooks') or ():
        kind = hook.get('type', '') if isinstance(hook, Mapping) else type(hook)
        name = str(getattr(kind, '__name__', kind)).rpartition('.')[2]
        if 'EMA' in name:
            raise PETLError(
                f'{name} averages after every pass, and the batch of the recipe needs '
                'several in a step; ask for processes instead, or leave out the hook'
            )
