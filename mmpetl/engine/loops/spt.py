"""SPT's pass over data as a loop: where is the task sensitive?

What follows is an ordinary run of ``SPT(found='.../spt.json')``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from mmengine.dist import barrier, is_main_process
from mmengine.runner import BaseLoop, Runner

from mmpetl.core import PETLError, check_range, injections
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.loops.phase import Phase
from mmpetl.methods.spt import SPT, Found
from mmpetl.registry import LOOPS


@LOOPS.register_module()
class SPTLoop(Phase, BaseLoop):
    """Finds out which parameters train, and updates none.

    It is the ``train_cfg`` of a run whose model holds ``SPT()``. In the work folder it
    leaves ``spt.json``, for ``SPT(found='.../spt.json')``. The first process makes the
    pass, over all training data in an order that follows from the seed.

    Args:
        runner: The runner.
        dataloader: Training data.
        budget: How many parameters are to train, heads excluded.
        batches: The most batches that are looked at.

    Raises:
        PETLError: The model holds no SPT that is to be found.
    """

    phase = 'sensitivity'
    max_epochs = 1
    max_iters = 1

    @classmethod
    def prepare(
        cls, config: Any, settings: Mapping[str, Any], folders: Mapping[str, Path]
    ) -> None:
        config.train_cfg = {'type': f'mmpetl.{cls.__name__}', **settings}
        config.param_scheduler = None
        for part in ('val_dataloader', 'val_evaluator', 'val_cfg'):
            config[part] = None

    @classmethod
    def cost(
        cls, settings: Mapping[str, Any], max_epochs: int | None
    ) -> tuple[float, int]:
        return 0.0, settings.get('batches', 16)

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        budget: int = 400_000,
        batches: int = 16,
    ) -> None:
        super().__init__(runner, dataloader)
        check_range('SPTLoop', 'budget', budget, 1)
        check_range('SPTLoop', 'batches', batches, 1)
        self.budget = budget
        self.batches = batches
        self._done = 0
        self.method = self._method()

    # What hooks and the runner ask of a loop that takes the place of training.
    @property
    def epoch(self) -> int:
        """Whether the pass is made."""
        return self._done

    @property
    def iter(self) -> int:
        """The same."""
        return self._done

    def _method(self) -> SPT:
        found = [
            slot.method
            for _, _, record in injections(plain_model(self.runner))
            for slot in record.slots.values()
            if isinstance(slot.method, SPT) and slot.method.found is None
        ]
        if len(found) != 1:
            raise PETLError(
                f'the model holds {len(found)} SPT whose parameters are to be found, '
                "one is needed: method=dict(type='SPT'), without found"
            )
        return found[0]

    def run(self) -> None:
        """Make the pass, and write what was found."""
        if is_main_process():
            self._find()
        barrier()
        self._done = 1

    def _find(self) -> None:
        model = plain_model(self.runner)
        given = self.method.sensitivities(model, self.dataloader, self.batches)
        found = self.method.allocate(given, self.budget)
        path = Path(self.runner.work_dir) / 'spt.json'
        write_found(path, found)
        self.runner.logger.info(
            f'SPT found {found.params:,} parameters (budget {self.budget:,}): '
            f'{len(found.modules)} modules, single entries at {len(found.single)} '
            f'sites, {len(found.biases) + len(found.vectors)} vectors: {path}'
        )


def write_found(path: Path, found: Found) -> None:
    """Write what was found, whole or not at all."""
    text = json.dumps(msgspec.to_builtins(found), indent=2) + '\n'
    AtomicLocalBackend().put_text(text, path)
