"""Metrics that upstream lacks."""

from mmpetl.evaluation.multi_task import DepthError, relative_improvement
from mmpetl.evaluation.ppt import ppt

__all__ = ['DepthError', 'ppt', 'relative_improvement']
