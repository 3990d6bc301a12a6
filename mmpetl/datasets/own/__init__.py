"""A person's own pictures: found, checked, divided, and read as a data set.

:mod:`.find` says which pictures there are and what is wrong with them, :mod:`.splits`
divides them and keeps the division in a file, :class:`OwnPictures` reads one part.
"""

from mmpetl.datasets.own.dataset import OwnPictures
from mmpetl.datasets.own.find import Found, Picture, find_pictures
from mmpetl.datasets.own.splits import Splits, keep_splits, read_splits

__all__ = [
    'Found',
    'OwnPictures',
    'Picture',
    'Splits',
    'find_pictures',
    'keep_splits',
    'read_splits',
]
