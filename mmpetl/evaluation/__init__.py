"""Metrics that upstream lacks."""

from mmpetl.evaluation.ppt import ppt

__all__ = ['ppt']
