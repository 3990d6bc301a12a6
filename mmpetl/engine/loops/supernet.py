"""The first phase of a method that searches: a supernet, a subnet of it at a time."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmpetl.core import PETLError
from mmpetl.core.supernet import supernet_of
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.loops.training import TrainingPhase


class SupernetLoop(TrainingPhase):
    """Trains a random subnet of the supernet at each step.

    The subnet of step i depends on the seed and i alone: all processes agree on it, and
    a resumed run draws what an uninterrupted one would have drawn. Between epochs the
    largest subnet acts.

    Args:
        runner: The runner.
        dataloader: A data loader or its config.
        max_epochs: Epochs to train.
        seed: Seed of the subnets.
        val_begin: See ``mmengine.runner.EpochBasedTrainLoop``.
        val_interval: See there.
        dynamic_intervals: See there.

    Raises:
        PETLError: The model holds no supernet, or a distributed wrapper would wait for
            gradients of what is not sampled.
    """

    phase = 'supernet'

    @classmethod
    def prepare(
        cls, config: Any, settings: Mapping[str, Any], folders: Mapping[str, Path]
    ) -> None:
        super().prepare(config, settings, folders)
        # A step trains one subnet, so a wrapper must not wait for the others.
        config.merge_from_dict({'model_wrapper_cfg.find_unused_parameters': True})

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_epochs: int,
        seed: int = 0,
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__(
            runner, dataloader, max_epochs, val_begin, val_interval, dynamic_intervals
        )
        self.seed = seed
        self.supernet = supernet_of(plain_model(runner))

    def run(self) -> torch.nn.Module:
        """Launch training."""
        model = self.runner.model
        if is_model_wrapper(model) and not model.find_unused_parameters:
            raise PETLError(
                'a supernet trains a part of itself at each step; several processes '
                'need model_wrapper_cfg.find_unused_parameters=True'
            )
        return super().run()

    def run_epoch(self) -> None:
        """One epoch, after which the largest subnet acts."""
        super().run_epoch()
        net = self.supernet
        net.activate(net.space.largest())

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One step of a subnet drawn for it."""
        net = self.supernet
        rng = random.Random(f'{self.seed}:{self._iter}')
        net.activate(net.space.draw(rng))
        super().run_iter(idx, data_batch)
