"""What a training loop says that runs before the training that counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class Phase:
    """Mixed into the loops that a method names in :attr:`mmpetl.core.Method.phases`.

    Attributes:
        phase: Its name, that of its folder and of its settings in a config's
            ``phases``.
    """

    phase: ClassVar[str]

    @classmethod
    def prepare(
        cls, config: Any, settings: Mapping[str, Any], folders: Mapping[str, Path]
    ) -> None:
        """Make the config of a tuning run that of this phase.

        Args:
            config: Changed in place.
            settings: Those of ``phases`` in the config of the job.
            folders: Work folders of the method's phases by name.
        """
        raise NotImplementedError

    @classmethod
    def cost(
        cls, settings: Mapping[str, Any], max_epochs: int | None
    ) -> tuple[float, int]:
        """What it takes.

        Args:
            settings: As in :meth:`prepare`.
            max_epochs: Epochs of the training that counts; None where it counts steps.

        Returns:
            Trainings as long as the one that counts, and passes over the validation
            data.
        """
        raise NotImplementedError
