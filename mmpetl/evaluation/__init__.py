"""Metrics that upstream lacks."""

from mmpetl.evaluation.label_maps import LabelMaps
from mmpetl.evaluation.masked_accuracy import MaskedAccuracy
from mmpetl.evaluation.multi_task import DepthError, relative_improvement
from mmpetl.evaluation.ppt import ppt

__all__ = ['DepthError', 'LabelMaps', 'MaskedAccuracy', 'ppt', 'relative_improvement']
