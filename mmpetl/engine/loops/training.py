"""A phase that trains by epochs, as the training that counts does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.runner import EpochBasedTrainLoop

from mmpetl.core import PETLError
from mmpetl.engine.latest import newest_checkpoint
from mmpetl.engine.loops.phase import Phase


class TrainingPhase(Phase, EpochBasedTrainLoop):
    """The ordinary loop, without validation; ``max_epochs`` is that of the run or own.

    Schedulers stretch with the epochs.
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
        stretch = config.train_cfg.max_epochs / planned
        for scheduler in config.get('param_scheduler') or ():
            for key in ('begin', 'end', 'T_max'):
                if key in scheduler:
                    scheduler[key] = round(scheduler[key] * stretch)

    @classmethod
    def cost(
        cls, settings: Mapping[str, Any], max_epochs: int | None
    ) -> tuple[float, int]:
        epochs = settings.get('max_epochs', max_epochs)
        return (epochs / max_epochs if max_epochs else 1.0), 0


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
