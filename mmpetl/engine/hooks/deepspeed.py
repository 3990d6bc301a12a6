"""A run whose steps DeepSpeed makes."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import (
    BaseLoop,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
)

from mmpetl.core import PETLError
from mmpetl.engine.hooks.base_guard import BaseGuardHook
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.hooks.delta_checkpoint import DeltaCheckpointHook
from mmpetl.engine.hooks.ema import TrainableEMAHook
from mmpetl.engine.hooks.shard_base import check_even
from mmpetl.engine.zero import (
    ZeroModel,
    check_trainable,
    check_zero,
    held_bytes,
    start_zero,
)
from mmpetl.registry import HOOKS

LOOPS = (EpochBasedTrainLoop, IterBasedTrainLoop)
"""Loops whose every step trains the same."""


@HOOKS.register_module()
class DeepSpeedHook(Hook):
    """Hands model and optimizer to DeepSpeed when training begins; see `start_zero`.

    Weights are loaded, and a checkpoint is resumed, before that. Checkpoints are those
    of a run without it.

    Args:
        asked: See :func:`mmpetl.engine.zero.zero_settings`.
    """

    # Behind the guards, which look at the whole base once more.
    priority = 'VERY_LOW'

    def __init__(self, asked: Any = 3) -> None:
        self.asked = asked

    def before_run(self, runner: Runner) -> None:
        """Refuse what cannot be, before anything costs time."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # what is only tested is not sharded
        check_zero(runner.cfg, runner.world_size)
        check_trainable(plain_model(runner), runner.optim_wrapper)
        if not isinstance(runner.model, ZeroModel):
            raise PETLError(
                'deepspeed shards over the processes of a run, and this one has one; '
                'start several (--gpus 2, or tools/dist_train.sh CONFIG 2)'
            )
        loop = type(runner.train_loop)
        if loop not in LOOPS:
            raise PETLError(
                f'{loop.__name__} trains other parts in each step, or other than the '
                'optimizer holds, and deepspeed shards once; take shard_base'
            )
        for hook in runner.hooks:
            name = type(hook).__name__
            if isinstance(hook, EMAHook | TrainableEMAHook):
                raise PETLError(
                    f'{name} reads weights between steps, which deepspeed shards; '
                    'leave out one of them, or take mmpetl.TrainableEMAHook and '
                    'shard_base'
                )
            ours = isinstance(hook, DeltaCheckpointHook)
            if isinstance(hook, CheckpointHook) and not ours:
                raise PETLError(
                    f'{name} would save weights that deepspeed has sharded; take '
                    'mmpetl.DeltaCheckpointHook as default_hooks.checkpoint'
                )

    def before_train(self, runner: Runner) -> None:
        spared = start_zero(runner.model, runner.optim_wrapper, self.asked)
        # Slots that rest are sharded with the rest.
        for hook in runner.hooks:
            if isinstance(hook, BaseGuardHook):
                hook.note_resting(plain_model(runner))
        stage = runner.model.zero.stage
        held = held_bytes(plain_model(runner))
        runner.logger.info(
            f'deepspeed trains, ZeRO stage {stage}: a process holds '
            f'{held / 2**20:.1f} MiB of weights, {(held + spared) / 2**20:.1f} before'
        )
        if stage == 3 and spared <= 0:
            runner.logger.warning(
                'stage 3 spares no weights here: what trains is held whole, and so are '
                'weights below zero_optimization.stage3_param_persistence_threshold; '
                'stages 1 and 2 cost less'
            )

    def before_val(self, runner: Runner) -> None:
        if self._is_sharded(runner):
            check_even('val', runner.val_dataloader, 'deepspeed')

    def before_test(self, runner: Runner) -> None:
        if self._is_sharded(runner):
            check_even('test', runner.test_dataloader, 'deepspeed')

    @staticmethod
    def _is_sharded(runner: Runner) -> bool:
        zero = getattr(runner.model, 'zero', None)
        return zero is not None and zero.stage == 3
