"""Hooks fill buffers, guard and save. They never create parameters."""

from mmpetl.engine.hooks.base_guard import BaseGuardHook
from mmpetl.engine.hooks.calibration import CalibrationHook
from mmpetl.engine.hooks.data_read import DataReadHook
from mmpetl.engine.hooks.deepspeed import DeepSpeedHook
from mmpetl.engine.hooks.delta_checkpoint import DeltaCheckpointHook
from mmpetl.engine.hooks.drawing import DrawingHook
from mmpetl.engine.hooks.efficiency import EfficiencyHook
from mmpetl.engine.hooks.ema import TrainableEMAHook
from mmpetl.engine.hooks.feature_cache import FeatureCacheHook
from mmpetl.engine.hooks.nonfinite_guard import NonFiniteGuardHook
from mmpetl.engine.hooks.offload import OffloadHook
from mmpetl.engine.hooks.predictions import PredictionsHook
from mmpetl.engine.hooks.results import ResultsHook
from mmpetl.engine.hooks.run_log import RunLogHook
from mmpetl.engine.hooks.shard_base import ShardBaseHook

__all__ = [
    'BaseGuardHook',
    'CalibrationHook',
    'DataReadHook',
    'DeepSpeedHook',
    'DeltaCheckpointHook',
    'DrawingHook',
    'EfficiencyHook',
    'FeatureCacheHook',
    'NonFiniteGuardHook',
    'OffloadHook',
    'PredictionsHook',
    'ResultsHook',
    'RunLogHook',
    'ShardBaseHook',
    'TrainableEMAHook',
]
