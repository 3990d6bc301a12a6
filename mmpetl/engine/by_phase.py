"""JSON files of a run that say something of each of its phases.

``{"format": 1, "phases": {"train": {...}, "val": {...}}}``
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from mmpetl.core import PETLError
from mmpetl.core.boundary import read_json
from mmpetl.engine.files import AtomicLocalBackend

FORMAT = 1

T = TypeVar('T')


class ByPhase(msgspec.Struct, Generic[T]):
    """All that such a file holds."""

    format: int
    phases: dict[str, T] = {}


def read_by_phase(path: Path, kind: Any, what: str) -> dict[str, Any]:
    """What a file says, by phase; empty where there is none.

    Args:
        path: The file.
        kind: The ``msgspec.Struct`` of one phase.
        what: What the file is, for messages.

    Raises:
        PETLError: The file is damaged or of another format.
    """
    if not path.is_file():
        return {}
    found = read_json(path, ByPhase[kind], what)
    if found.format != FORMAT:
        raise PETLError(f'{path} has format {found.format}, this mmpetl reads {FORMAT}')
    return found.phases


def write_by_phase(path: Path, phases: Mapping[str, msgspec.Struct]) -> None:
    """Write such a file, whole or not at all."""
    facts = msgspec.to_builtins(ByPhase(FORMAT, dict(phases)))
    text = json.dumps(facts, allow_nan=False, indent=1) + '\n'
    AtomicLocalBackend().put_text(text, path)
