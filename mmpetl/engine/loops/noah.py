"""NOAH's first two phases as loops: train a supernet, search in it.

The third is an ordinary run of ``NOAH(found='.../found.json')``.
"""

from __future__ import annotations

from mmpetl.engine.loops.search import SearchLoop
from mmpetl.engine.loops.supernet import SupernetLoop
from mmpetl.methods.noah import NOAHEvolution
from mmpetl.registry import LOOPS


@LOOPS.register_module()
class NOAHSupernetLoop(SupernetLoop):
    """Trains a random subnet of ``NOAH(space=...)`` at each step."""


@LOOPS.register_module()
class NOAHSearchLoop(SearchLoop):
    """Searches the best subnet of a trained ``NOAH(space=...)``, as published."""

    evolution = NOAHEvolution
    budget = 640_000
