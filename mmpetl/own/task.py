"""What is trained on, before a method is named: pictures, trunk and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mmpetl.benchmark.records import Job, RecordStore
from mmpetl.datasets.own import Splits
from mmpetl.datasets.own.kinds import PICTURES
from mmpetl.engine.hooks.predictions import read_predictions
from mmpetl.own.defaults import Settings, pipelines
from mmpetl.own.maps import MapTrunk
from mmpetl.own.results import results_of
from mmpetl.own.trunks import Trunk


@dataclass(frozen=True)
class Task:
    """What is trained on: pictures, trunk and settings, before a method is named.

    This one trains classifiers; :mod:`.boxes` and :mod:`.masks` have theirs.

    Attributes:
        data: The folder or CSV, as it was named.
        root: The folder that pictures are below.
        folder: The work folder.
        splits: Which picture is where.
        trunk: The trunk.
        settings: Epochs, batch, rate, augmentation.
        seed: Of initialisation and data order.
        options: Dotted config keys on top of everything.
        workers: Processes that load pictures.
    """

    data: Path
    root: Path
    folder: Path
    splits: Splits
    trunk: Trunk | MapTrunk
    settings: Settings
    seed: int = 42
    options: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0

    kind: ClassVar[str] = PICTURES
    recipe: ClassVar[str] = 'own/pictures'
    """Below ``configs``."""
    channels: ClassVar[str] = 'to_rgb'
    """What the preprocessor of the recipe calls the turning of BGR into RGB."""

    @property
    def data_folder(self) -> Path:
        """What training reads of boxes and masks in this division.

        One that is drawn anew has a folder of its own: its runs are others, and the
        configs of earlier ones go on reading theirs.
        """
        return self.folder / 'data' / self.splits.digest[:12]

    @property
    def store(self) -> RecordStore:
        """The records of the work folder."""
        return RecordStore(self.folder)

    def in_words(self) -> list[str]:
        """What will be trained on and how, a line each."""
        splits, settings = self.splits, self.settings
        counts = {part: len(entries) for part, entries in splits.parts.items()}
        said = ', '.join(f'{count:,} {part}' for part, count in counts.items())
        drawn = f', {" and ".join(splits.drawn)} drawn' if splits.drawn else ''
        return [
            f'{len(splits.classes)} classes, {sum(counts.values()):,} pictures: '
            f'{said} ({self.folder / "splits.json"}{drawn})',
            *(f'note: {note}' for note in splits.notes),
            f'{settings.epochs} epochs, batch {settings.batch_size}, peak rate '
            f'{settings.lr:g}, augmentation {settings.augmentation}',
        ]

    def job(self, method: str, **changes: Any) -> Job:
        """The job that trains a method, with options of it on top.

        Args:
            method: Name of a method, or of several.
            changes: Fields of the job; ``options`` are laid over the task's.
        """
        base = self.base_options(changes.get('stage', 'final'))
        options = {**base, **changes.pop('options', {})}
        return Job(self.recipe, method, seed=self.seed, options=options, **changes)

    def base_options(self, stage: str = 'final') -> dict[str, Any]:
        """What departs from the recipe in a stage."""
        trunk = self.trunk
        train, test = pipelines(trunk, self.settings.augmentation)
        data = {
            'data_root': str(self.root.resolve()),
            'splits': str((self.folder / 'splits.json').resolve()),
            # The file may be drawn anew, which is another run.
            'division': self.splits.digest,
        }
        options = {
            **self.common_options(),
            'model.head.in_channels': trunk.feature_dims,
            'model.head.num_classes': len(self.splits.classes),
        }
        if trunk.neck:
            options['model.neck'] = trunk.neck
        scored = 'val' if stage == 'tune' else 'test'
        for phase, steps in (('train', train), (scored, test)):
            options |= self.loader_options(phase, {'pipeline': steps, **data})
        return {**options, **self.options}

    def common_options(self) -> dict[str, Any]:
        """Options of trunk, length, rate and loading, which all kinds share."""
        trunk, settings = self.trunk, self.settings
        options = {
            'model.backbone.backbone': {'_delete_': True, **trunk.backbone},
            'model.backbone.checkpoint': trunk.checkpoint,
            'model.data_preprocessor.mean': trunk.mean,
            'model.data_preprocessor.std': trunk.std,
            'train_dataloader.batch_size': settings.batch_size,
            'train_cfg.max_epochs': settings.epochs,
            'optim_wrapper.optimizer.lr': settings.lr,
        }
        if not trunk.rgb:  # recipes turn BGR into RGB
            options[f'model.data_preprocessor.{self.channels}'] = False
        return options

    def loader_options(self, phase: str, dataset: Mapping[str, Any]) -> dict[str, Any]:
        """Options of the loader of a phase: keys of its data set, and its processes."""
        loader = f'{phase}_dataloader'
        options: dict[str, Any] = {
            f'{loader}.dataset.{key}': value for key, value in dataset.items()
        }
        if self.workers:
            options[f'{loader}.num_workers'] = self.workers
            options[f'{loader}.persistent_workers'] = True
        return options

    def results_of_run(self, folder: Path) -> Any:
        """What a finished run says of the test pictures.

        Args:
            folder: Where the run lives, with its predictions, delta and config.

        Raises:
            PETLError: Its predictions are of other pictures.
        """
        logits, labels = read_predictions(folder / 'predictions.npz')
        return results_of(self.splits, logits, labels)
