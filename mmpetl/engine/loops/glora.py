"""GLoRA's first two phases as loops: train a supernet, search its paths.

The third is an ordinary run of ``GLoRA(found='.../found.json')``.
"""

from __future__ import annotations

from mmpetl.engine.loops.search import SearchLoop
from mmpetl.engine.loops.supernet import SupernetLoop
from mmpetl.methods.glora import GLoRAEvolution
from mmpetl.registry import LOOPS


@LOOPS.register_module()
class GLoRASupernetLoop(SupernetLoop):
    """Trains random paths of ``GLoRA(space=...)`` at each step, drawn by layer."""


@LOOPS.register_module()
class GLoRASearchLoop(SearchLoop):
    """Searches the best paths of a trained ``GLoRA(space=...)``, as published."""

    evolution = GLoRAEvolution
    budget = 1_000_000
    least = 1
