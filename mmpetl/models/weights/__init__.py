"""Base weights: read an official file, convert its names, load every key or say why.

One family of backbone has one canonical naming, which is that of its first release:
timm's for ViT (MAE and DINOv2 use it too), the authors' for Swin, Video Swin and
VideoMAE. Files and models are both translated into it, so a file format and a host
class meet without knowing each other.
"""

from mmpetl.models.weights.errors import WeightsError, WeightsNotFoundError
from mmpetl.models.weights.load import load_base_weights
from mmpetl.models.weights.report import LoadReport

__all__ = [
    'LoadReport',
    'WeightsError',
    'WeightsNotFoundError',
    'load_base_weights',
]
