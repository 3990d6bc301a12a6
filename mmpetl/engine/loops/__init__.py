"""Loops of methods that train in phases."""

from mmpetl.engine.loops.e2vpt import E2VPTPromptLoop, E2VPTPruneLoop
from mmpetl.engine.loops.glora import GLoRASearchLoop, GLoRASupernetLoop
from mmpetl.engine.loops.noah import NOAHSearchLoop, NOAHSupernetLoop
from mmpetl.engine.loops.phase import Phase
from mmpetl.engine.loops.spt import SPTLoop

__all__ = [
    'E2VPTPromptLoop',
    'E2VPTPruneLoop',
    'GLoRASearchLoop',
    'GLoRASupernetLoop',
    'NOAHSearchLoop',
    'NOAHSupernetLoop',
    'Phase',
    'SPTLoop',
]
