"""E2VPT's pruning as loops: train all prompts, then score tokens and segments.

What follows is an ordinary run with the masks that were found: the prompts are rewound,
so they train from the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import Runner

from mmpetl.core import PETLError, injections
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.loops.data_pass import DataPass
from mmpetl.engine.loops.training import TrainingPhase, checkpoint_of, load_trained
from mmpetl.methods.e2vpt import E2VPT
from mmpetl.registry import LOOPS


@LOOPS.register_module()
class E2VPTPromptLoop(TrainingPhase):
    """Trains all prompts of ``E2VPT(prune=...)``, keys and values too.

    It is MMEngine's loop by epochs.
    """

    phase = 'prompts'


@LOOPS.register_module()
class E2VPTPruneLoop(DataPass):
    """Scores tokens and segments of trained prompts, and leaves what stays.

    It is the ``train_cfg`` of a run whose model holds ``E2VPT(prune=...)``. In the work
    folder it leaves ``masks.json``: ``token_mask``, ``segment_mask`` and the scores.

    Args:
        runner: The runner.
        dataloader: Training data.
        prompts: Checkpoint of the trained prompts, or the work folder of their run.

    Raises:
        PETLError: The model holds no such method, or there is no checkpoint.
    """

    phase = 'prune'

    @classmethod
    def prepare(
        cls, config: Any, settings: Mapping[str, Any], folders: Mapping[str, Path]
    ) -> None:
        super().prepare(config, settings, folders)
        config.train_cfg.setdefault('prompts', str(folders[E2VPTPromptLoop.phase]))

    @classmethod
    def cost(
        cls, settings: Mapping[str, Any], max_epochs: int | None
    ) -> tuple[float, int]:
        # One epoch, forward and back.
        return (1 / max_epochs if max_epochs else 0.0), 0

    def __init__(self, runner: Runner, dataloader: Any, prompts: str) -> None:
        super().__init__(runner, dataloader)
        self.prompts = prompts
        found = [
            slot.method
            for _, _, record in injections(plain_model(runner))
            for slot in record.slots.values()
            if isinstance(slot.method, E2VPT) and slot.method.prune is not None
        ]
        if len(found) != 1:
            raise PETLError(
                f'the model holds {len(found)} E2VPT that prune, one is needed: '
                "method=dict(type='E2VPT', prune=dict(tokens=0.5, segments=0.5))"
            )
        self.method = found[0]

    def begin(self) -> None:
        file = checkpoint_of('trained prompts', self.prompts, 'train_cfg.prompts')
        load_trained(self.runner, file)

    def find(self) -> None:
        importance = self.method.importance(plain_model(self.runner), self.dataloader)
        masks = self.method.masks(importance)
        path = self.write('masks.json', {**masks, 'importance': importance.tolist()})
        self.runner.logger.info(
            f'E2VPT leaves {sum(masks["token_mask"])} of {len(importance)} prompts, '
            f'and {sum(masks["segment_mask"][0])} of {importance.shape[1]} segments of '
            f'each: {path}'
        )
