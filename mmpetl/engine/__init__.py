"""Hooks, optimizer groups and distributed wrapper for MMEngine's Runner."""

from mmpetl.engine.distributed import PETLDistributedDataParallel
from mmpetl.engine.hooks import (
    BaseGuardHook,
    CalibrationHook,
    DeltaCheckpointHook,
    EfficiencyHook,
    NonFiniteGuardHook,
)
from mmpetl.engine.loops import NOAHSearchLoop, NOAHSupernetLoop
from mmpetl.engine.optim import OwnerOptimWrapperConstructor

__all__ = [
    'BaseGuardHook',
    'CalibrationHook',
    'DeltaCheckpointHook',
    'EfficiencyHook',
    'NOAHSearchLoop',
    'NOAHSupernetLoop',
    'NonFiniteGuardHook',
    'OwnerOptimWrapperConstructor',
    'PETLDistributedDataParallel',
]
