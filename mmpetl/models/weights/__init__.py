"""Base weights: read an official file, convert its names, load every key or say why.

Two roads lead from a file into a model. ViT, Swin, Video Swin and VideoMAE have one
canonical naming each, which is that of its first release: timm's for ViT (MAE and
DINOv2 use it too), the authors' for the others. Files and models are both translated
into it, so a file format and a host class meet without knowing each other
(``layouts.py``). Every other model is held against its own names (``own_names.py``),
after official names of its class have been turned into them (``convert.py``).
"""

from mmpetl.models.weights.address import resolve
from mmpetl.models.weights.download import check_file, fetch
from mmpetl.models.weights.errors import WeightsError, WeightsNotFoundError
from mmpetl.models.weights.identity import FileFacts, describe_file
from mmpetl.models.weights.load import load_base_weights
from mmpetl.models.weights.registry import KNOWN_FILES, KnownFile, find_known, needed_by
from mmpetl.models.weights.report import LoadReport

__all__ = [
    'KNOWN_FILES',
    'FileFacts',
    'KnownFile',
    'LoadReport',
    'WeightsError',
    'WeightsNotFoundError',
    'check_file',
    'describe_file',
    'fetch',
    'find_known',
    'load_base_weights',
    'needed_by',
    'resolve',
]
