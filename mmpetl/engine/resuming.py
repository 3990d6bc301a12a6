"""What a run must take up again to end as one that was never killed.

Random generators, gradients that wait for a step, and the place in the data. A run that
goes on inside an epoch draws the batches that it has seen and throws them away, as
MMEngine's iteration-based loop does: data workers and stateful data sets then stand
where they stood.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.hooks import EarlyStoppingHook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmpetl.core import PETLError


def rng_state() -> dict[str, Any]:
    """The random generators of this process, in types that load without pickle."""
    name, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        'torch': torch.get_rng_state(),
        'cuda': cuda,
        'numpy': [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        'python': [version, list(internal), gauss],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Undo :func:`rng_state`."""
    torch.set_rng_state(state['torch'].cpu())
    if torch.cuda.is_available() and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state['cuda']])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))


def pending_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients that were accumulated and wait for a step, on the CPU, by name."""
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if not any(bool(grad.any()) for grad in grads.values()):
        return {}
    return {name: grad.detach().cpu().clone() for name, grad in grads.items()}


def restore_gradients(model: nn.Module, grads: Mapping[str, Tensor]) -> None:
    """Undo :func:`pending_gradients`."""
    params = dict(model.named_parameters())
    for name, grad in grads.items():
        params[name].grad = grad.to(params[name].device).clone()


class SkippingIterator:
    """A data iterator that sets the generators after ``skip`` batches.

    A resumed iteration-based loop draws the batches it has seen, and throws them
    away; what follows must see the generators as the checkpoint left them.

    Args:
        inner: The loop's own iterator.
        skip: Batches that the checkpoint has seen.
        state: What :func:`rng_state` gave for this process.
    """

    def __init__(self, inner: Any, skip: int, state: Mapping[str, Any]) -> None:
        self._inner = inner
        self._skip = skip
        self._state = state

    def __iter__(self) -> SkippingIterator:
        return self

    def __next__(self) -> Any:
        batch = next(self._inner)
        self._skip -= 1
        if self._skip == 0:
            set_rng_state(self._state)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class RestOfEpoch:
    """The batches of an epoch that a checkpoint has not seen.

    It takes the place of the loader of an epoch-based loop until that iterates over
    it; steps keep the numbers that they have in the whole epoch.

    Args:
        loop: The loop.
        seen: Batches of the epoch that the checkpoint has seen; all of them where it
            was written at the last step of the epoch.
        start: The generators of this process as they were when the epoch began.
        state: The generators as the checkpoint left them.

    Raises:
        PETLError: An epoch of these data cannot have so many batches.
    """

    def __init__(
        self,
        loop: BaseLoop,
        seen: int,
        start: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> None:
        self._loop, self._loader = loop, loop.dataloader
        self._seen, self._start, self._state = seen, start, state
        if not 0 <= seen <= len(self._loader):
            raise PETLError(
                f'the checkpoint stands at iteration {loop.iter}, inside epoch '
                f'{loop.epoch + 1}, which an epoch of {len(self._loader)} batches does '
                'not meet; resume with the same data, batch size and processes'
            )

    def __iter__(self) -> Iterator[Any]:
        loop, run_iter = self._loop, self._loop.run_iter
        loop.dataloader = self._loader
        loop.run_iter = lambda idx, batch: run_iter(self._seen + idx, batch)
        set_rng_state(self._start)
        batches = iter(self._loader)
        for _ in range(self._seen):
            next(batches)
        set_rng_state(self._state)
        yield from batches
        del loop.run_iter

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class EpochSeeds:
    """Seeds persistent data workers anew in every epoch; a ``worker_init_fn``.

    They live as long as a run and draw on from epoch to epoch. The workers of a resumed
    run are new, and would draw what those of the first epoch drew.

    Args:
        inner: What initialises a worker otherwise.
        seed: Seed of the run.
        rank: Number of this process among those that train.
    """

    def __init__(
        self, inner: Callable[[int], None] | None, seed: int, rank: int
    ) -> None:
        self.inner, self.seed, self.rank = inner, seed, rank
        # The workers see it change. They are idle whenever an epoch begins.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, worker_id: int) -> None:
        if self.inner is not None:
            self.inner(worker_id)
        dataset = get_worker_info().dataset
        read = getattr(dataset, '__getitems__', None)
        seeded = None

        def read_seeded(indices: list[int]) -> list[Any]:
            nonlocal seeded
            epoch = int(self.epoch)
            if epoch != seeded:
                seed_all(f'{self.seed}:{self.rank}:{worker_id}:{epoch}')
                seeded = epoch
            return read(indices) if read else [dataset[i] for i in indices]

        # By this name torch asks a data set for a batch of samples.
        dataset.__getitems__ = read_seeded


def seed_all(key: str) -> None:
    """Seed the generators of this process with a number that follows from ``key``."""
    number = random.Random(key).getrandbits(32)
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def seed_by_epoch(loop: BaseLoop, seed: int, rank: int) -> EpochSeeds | None:
    """Let an epoch-based loop's persistent workers be seeded by epoch.

    Returns:
        What to tell the epoch; None where workers do not outlive an epoch, where the
        loop, iteration-based, draws all their batches again, or where they cannot be
        seeded, of which a warning tells.
    """
    loader = loop.dataloader
    if hasattr(loop, 'dataloader_iterator') or not (
        isinstance(loader, DataLoader) and loader.persistent_workers
    ):
        return None
    if isinstance(loader.worker_init_fn, EpochSeeds):
        return loader.worker_init_fn
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        print_log(
            'persistent workers of a data set without indices or batches cannot be '
            'seeded by epoch, so a resumed run will draw other random numbers; set '
            'train_dataloader.persistent_workers=False to keep them',
            logger='current',
            level=logging.WARNING,
        )
        return None
    loader.worker_init_fn = EpochSeeds(loader.worker_init_fn, seed, rank)
    # Starting workers draws a number, which must not come from the run's own generator:
    # a resumed run starts them in another epoch.
    loader.generator = torch.Generator().manual_seed(seed)
    return loader.worker_init_fn


def validation_is_due(loop: BaseLoop) -> bool:
    """Whether a loop that stands between two steps, or two epochs, validates there."""
    runner = loop.runner
    if runner.val_loop is None:
        return False
    by_epoch = not hasattr(loop, 'dataloader_iterator')
    done, last = (
        (runner.epoch, runner.max_epochs)
        if by_epoch
        else (runner.iter, runner.max_iters)
    )
    loop._decide_current_val_interval()
    begun = done >= loop.val_begin
    return begun and (done % loop.val_interval == 0 or done == last)


def replay_early_stopping(runner: Runner) -> None:
    """Show MMEngine's EarlyStoppingHooks the validations that a checkpoint tells of.

    They keep what they have seen of the metric to themselves; the log that every
    checkpoint holds has it too.
    """
    logs = runner.message_hub.log_scalars
    for hook in runner.hooks:
        key = f'val/{hook.monitor}' if isinstance(hook, EarlyStoppingHook) else None
        if key in logs:
            for score in logs[key].data[0].tolist():
                if hook._check_stop_condition(score)[0]:
                    runner.train_loop.stop_training = True
