"""Loops of methods that train in phases."""

from mmpetl.engine.loops.glora import GLoRASearchLoop, GLoRASupernetLoop
from mmpetl.engine.loops.noah import NOAHSearchLoop, NOAHSupernetLoop
from mmpetl.engine.loops.phase import Phase
from mmpetl.engine.loops.spt import SPTLoop

__all__ = [
    'GLoRASearchLoop',
    'GLoRASupernetLoop',
    'NOAHSearchLoop',
    'NOAHSupernetLoop',
    'Phase',
    'SPTLoop',
]
