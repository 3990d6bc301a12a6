"""A frozen base that each process of a run holds its share of."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from mmpetl.core import PETLError
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.sharding import shard_base
from mmpetl.registry import HOOKS


@HOOKS.register_module()
class ShardBaseHook(Hook):
    """Shards the frozen base when training begins; see :func:`shard_base`.

    Weights are loaded, and a checkpoint is resumed, before that. Checkpoints hold the
    delta, and are those of a run that is not sharded.
    """

    # Behind the guards, which look at the whole base once more.
    priority = 'VERY_LOW'

    def before_run(self, runner: Runner) -> None:
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                raise PETLError(
                    'the average of EMAHook is a second model, which holds the base '
                    'whole; take mmpetl.TrainableEMAHook beside shard_base'
                )

    def before_train(self, runner: Runner) -> None:
        spared = shard_base(plain_model(runner))
        runner.logger.info(
            f'the frozen base is sharded: {spared / 2**20:.1f} MiB less in a process'
        )

    def before_val(self, runner: Runner) -> None:
        check_even('val', runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        check_even('test', runner.test_dataloader)


def check_even(phase: str, loader: Any, key: str = 'shard_base') -> None:
    """Raise PETLError where processes would see different numbers of batches.

    Args:
        phase: ``val`` or ``test``.
        loader: Its loader.
        key: The key of a config that shards.

    Each gathers the base with all the others whenever a block runs, so that one that
    has more to do would wait for ever.
    """
    sampler = loader.sampler
    uneven = len(loader.dataset) % getattr(sampler, 'world_size', 1)
    if uneven and not getattr(sampler, 'round_up', True):
        raise PETLError(
            f'the {len(loader.dataset)} samples of {phase} do not fall evenly to '
            f'{sampler.world_size} processes; leave round_up=False out of the sampler '
            f'of its loader, which counts no sample twice, or {key} out'
        )
