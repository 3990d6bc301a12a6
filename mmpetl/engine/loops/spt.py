"""SPT's pass over data as a loop: where is the task sensitive?

What follows is an ordinary run of ``SPT(found='.../spt.json')``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from mmengine.runner import Runner

from mmpetl.core import PETLError, check_range, injections
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.loops.data_pass import DataPass
from mmpetl.methods.spt import SPT
from mmpetl.registry import LOOPS


@LOOPS.register_module()
class SPTLoop(DataPass):
    """Finds out which parameters train, and updates none.

    It is the ``train_cfg`` of a run whose model holds ``SPT()``. In the work folder it
    leaves ``spt.json``, for ``SPT(found='.../spt.json')``.

    Args:
        runner: The runner.
        dataloader: Training data.
        budget: How many parameters are to train, heads excluded.
        batches: The most batches that are looked at.

    Raises:
        PETLError: The model holds no SPT that is to be found.
    """

    phase = 'sensitivity'

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
        self.method = self._method()

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

    def find(self) -> None:
        model = plain_model(self.runner)
        given = self.method.sensitivities(model, self.dataloader, self.batches)
        found = self.method.allocate(given, self.budget)
        path = self.write('spt.json', msgspec.to_builtins(found))
        self.runner.logger.info(
            f'SPT found {found.params:,} parameters (budget {self.budget:,}): '
            f'{len(found.modules)} modules, single entries at {len(found.single)} '
            f'sites, {len(found.biases) + len(found.vectors)} vectors: {path}'
        )
