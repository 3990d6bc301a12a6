"""A phase that looks at the training data once, and updates nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.runner import BaseLoop

from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.loops.phase import Phase


class DataPass(Phase, BaseLoop):
    """The ``train_cfg`` of a run that trains nothing and leaves a file.

    The first process makes the pass, over all training data in an order that follows
    from the seed; the others wait.
    """

    max_epochs = 1
    max_iters = 1
    _done = 0

    @classmethod
    def prepare(
        cls, config: Any, settings: Mapping[str, Any], folders: Mapping[str, Path]
    ) -> None:
        config.train_cfg = {'type': f'mmpetl.{cls.__name__}', **settings}
        config.param_scheduler = None
        for part in ('val_dataloader', 'val_evaluator', 'val_cfg'):
            config[part] = None

    # What hooks and the runner ask of a loop that takes the place of training.
    @property
    def epoch(self) -> int:
        """Whether the pass is made."""
        return self._done

    @property
    def iter(self) -> int:
        """The same."""
        return self._done

    def run(self) -> None:
        """Make the pass, and write what was found."""
        self.begin()
        if is_main_process():
            self.find()
        barrier()
        self._done = 1

    def begin(self) -> None:
        """What every process does first."""

    def find(self) -> None:
        """Make the pass and write what it found, in the first process."""
        raise NotImplementedError

    def write(self, name: str, found: Any) -> Path:
        """Write a JSON file in the work folder, whole or not at all."""
        path = Path(self.runner.work_dir) / name
        AtomicLocalBackend().put_text(json.dumps(found, indent=2) + '\n', path)
        return path
