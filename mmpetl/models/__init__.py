"""The builder that MMEngine sees, and loading of base weights."""

from mmpetl.models.multi_task import DepthHead, MultiTaskModel, SegmentationHead
from mmpetl.models.petl_backbone import petl_backbone
from mmpetl.models.weights import load_base_weights

__all__ = [
    'DepthHead',
    'MultiTaskModel',
    'SegmentationHead',
    'load_base_weights',
    'petl_backbone',
]
