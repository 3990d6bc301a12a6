"""Loops of methods that train in phases."""

from mmpetl.engine.loops.noah import NOAHSearchLoop, NOAHSupernetLoop

__all__ = ['NOAHSearchLoop', 'NOAHSupernetLoop']
