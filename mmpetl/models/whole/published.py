"""Published deltas for the readers of upstream: ``init_detector(config, FILE)``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.runner.checkpoint import CheckpointLoader

from mmpetl.core.delta_file import BASE_KEY, delta_paths, read_delta_file
from mmpetl.models.weights.containers import read_tensors

PATTERN = r'(?!\w[\w+.-]+://).*\.safetensors$'
"""Local files; MMEngine takes what it calls prefixes as patterns."""


def read_published_deltas() -> None:
    """Let MMEngine's ``load_checkpoint`` read a delta of two files, or safetensors."""
    if PATTERN not in CheckpointLoader._schemes:
        CheckpointLoader.register_scheme(PATTERN, loader=_read)


def _read(filename: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint as MMEngine has them, of the tensors in a local file.

    Args:
        filename: A delta with its record beside it, or plain tensors.
        map_location: Has no effect: the model moves what it takes.
    """
    path = Path(filename).expanduser()
    if not delta_paths(path)[1].is_file():
        return {'state_dict': read_tensors(path).tensors, 'meta': {}}
    state, facts = read_delta_file(path)
    digits = list(bytes.fromhex(facts['fingerprint']))
    state[BASE_KEY] = torch.tensor(digits, dtype=torch.uint8)
    dataset = {k: facts[k] for k in ('classes', 'palette') if facts.get(k)}
    meta = {'mmpetl': facts} | ({'dataset_meta': dataset} if dataset else {})
    return {'state_dict': state, 'meta': meta}
