"""Loops of methods that train in phases."""

from mmpetl.engine.loops.noah import NOAHSearchLoop, NOAHSupernetLoop
from mmpetl.engine.loops.phase import Phase
from mmpetl.engine.loops.spt import SPTLoop

__all__ = ['NOAHSearchLoop', 'NOAHSupernetLoop', 'Phase', 'SPTLoop']
