"""A phase that trains by epochs, as the training that counts does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmpetl.core import PETLError
from mmpetl.engine.latest import newest_checkpoint
from mmpetl.engine.loops.phase import Phase
from mmpetl.engine.stretching import stretched


class TrainingPhase(Phase, EpochBasedTrainLoop):
    """The ordinary loop, without validation; ``max_epochs`` is that of the run or own.

    Schedules stretch with the epochs (:mod:`mmpetl.engine.stretching`).
    """

    @classmethod
    def prepare(
        cls, config: Any, settings: Mapping[str, Any], folders: Mapping[str, Path]
    ) -> None:
        planned = config.train_cfg.get('max_epochs')
        if planned is None:
            raise PETLError(
                f'the phase {cls.phase!r} counts epochs, and the run counts steps; '
                'give train_cfg max_epochs'
            )
        config.train_cfg = {
            'type': f'mmpetl.{cls.__name__}',
            'max_epochs': planned,
            **settings,
        }
        for part in ('val_dataloader', 'val_evaluator', 'val_cfg'):
            config[part] = None
        epochs, schedules = config.train_cfg.max_epochs, config.get('param_scheduler')
        if schedules and epochs != planned:
            config.param_scheduler = stretched(
                schedules,
                planned,
                epochs,
                f'the phase {cls.phase!r} has {epochs} epochs of {planned}, and how '
                '{} is to follow is not known; leave its max_epochs out, or take '
                'another scheduler',
            )

    @classmethod
    def cost(
        cls, settings: Mapping[str, Any], max_epochs: int | None
    ) -> tuple[float, int]:
        epochs = settings.get('max_epochs', max_epochs)
        return (epochs / max_epochs if max_epochs else 1.0), 0


def load_trained(runner: Runner, file: Path) -> None:
    """Load the weights of another run, which are no resumption of this one.

    The weights of a checkpoint are the average, where its run kept one. Hooks that keep
    one take it apart in a run that is resumed, and mmpretrain's in any.
    """
    resumes, hooks = runner._resume, runner._hooks
    runner._resume = False
    runner._hooks = [hook for hook in hooks if not isinstance(hook, EMAHook)]
    try:
        runner.load_checkpoint(str(file))
    finally:
        runner._resume, runner._hooks = resumes, hooks


def checkpoint_of(phase: str, path: str, setting: str) -> Path:
    """A checkpoint file, or the last one of a phase's work folder.

    Args:
        phase: What was trained, for the message.
        path: File or folder.
        setting: What names it in a config.

    Raises:
        PETLError: There is none.
    """
    file = Path(path)
    if file.is_dir():
        file = newest_checkpoint(file)[0] or file
    if not file.is_file():
        raise PETLError(
            f'there is no checkpoint of {phase} at {path}; train one first, or name '
            f'its file or folder with {setting}'
        )
    return file
