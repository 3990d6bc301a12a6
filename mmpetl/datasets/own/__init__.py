"""A person's own pictures: found, checked, divided, and read as a data set.

:mod:`.find` says which pictures there are and what is wrong with them, :mod:`.boxes`
and :mod:`.masks` the same of annotated ones, and :mod:`.kinds` which of them a folder
holds. :mod:`.splits` divides them and keeps the division in a file;
:class:`OwnPictures` reads one part, and data sets of mmdet and mmseg those of boxes and
masks.
"""

from mmpetl.datasets.own.boxes import Boxes, find_boxes
from mmpetl.datasets.own.dataset import OwnPictures
from mmpetl.datasets.own.find import Found, Picture, find_pictures
from mmpetl.datasets.own.kinds import kind_of
from mmpetl.datasets.own.masks import Masks, find_masks
from mmpetl.datasets.own.splits import Splits, keep_splits, read_splits

__all__ = [
    'Boxes',
    'Found',
    'Masks',
    'OwnPictures',
    'Picture',
    'Splits',
    'find_boxes',
    'find_masks',
    'find_pictures',
    'keep_splits',
    'kind_of',
    'read_splits',
]
