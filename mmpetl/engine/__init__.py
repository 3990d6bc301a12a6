"""Hooks, optimizer groups and distributed wrapper for MMEngine's Runner."""

from mmpetl.engine.accumulation import AccumulatingSchedulerHook, SharesSampler
from mmpetl.engine.distributed import PETLDistributedDataParallel
from mmpetl.engine.hooks import (
    BaseGuardHook,
    CalibrationHook,
    DataReadHook,
    DeepSpeedHook,
    DeltaCheckpointHook,
    DrawingHook,
    EfficiencyHook,
    FeatureCacheHook,
    NonFiniteGuardHook,
    OffloadHook,
    ShardBaseHook,
    TrainableEMAHook,
)
from mmpetl.engine.loops import (
    E2VPTPromptLoop,
    E2VPTPruneLoop,
    GLoRASearchLoop,
    GLoRASupernetLoop,
    NOAHSearchLoop,
    NOAHSupernetLoop,
    SPTLoop,
)
from mmpetl.engine.optim import OwnerOptimWrapperConstructor
from mmpetl.engine.runner import TuningRunner
from mmpetl.engine.schedulers import TimmCosineLR
from mmpetl.engine.zero import ZeroModel

__all__ = [
    'AccumulatingSchedulerHook',
    'BaseGuardHook',
    'CalibrationHook',
    'DataReadHook',
    'DeepSpeedHook',
    'DeltaCheckpointHook',
    'DrawingHook',
    'E2VPTPromptLoop',
    'E2VPTPruneLoop',
    'EfficiencyHook',
    'FeatureCacheHook',
    'GLoRASearchLoop',
    'GLoRASupernetLoop',
    'NOAHSearchLoop',
    'NOAHSupernetLoop',
    'NonFiniteGuardHook',
    'OffloadHook',
    'OwnerOptimWrapperConstructor',
    'PETLDistributedDataParallel',
    'SPTLoop',
    'ShardBaseHook',
    'SharesSampler',
    'TimmCosineLR',
    'TrainableEMAHook',
    'TuningRunner',
    'ZeroModel',
]
