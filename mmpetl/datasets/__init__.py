"""Data sets that upstream lacks, and checks of data on disk."""

from mmpetl.datasets.caching import LoadOnce
from mmpetl.datasets.catalog import BENCHMARK_IDS, CATALOG, DatasetFacts, facts_of
from mmpetl.datasets.checks import check_config, check_dataset
from mmpetl.datasets.corruptions import CORRUPTIONS, Corruption, corrupt
from mmpetl.datasets.dense_tasks import DenseTasks
from mmpetl.datasets.fgvc import FGVC, FGVC_SETS
from mmpetl.datasets.held_out import HeldOut
from mmpetl.datasets.image_list import ImageList, StudyImages
from mmpetl.datasets.own import OwnPictures
from mmpetl.datasets.reading import UnreadableFileError, guard_reading, guard_runner
from mmpetl.datasets.video_list import VideoList
from mmpetl.datasets.vtab import VTAB, VTAB_TASKS

__all__ = [
    'BENCHMARK_IDS',
    'CATALOG',
    'CORRUPTIONS',
    'FGVC',
    'FGVC_SETS',
    'VTAB',
    'VTAB_TASKS',
    'Corruption',
    'DatasetFacts',
    'DenseTasks',
    'HeldOut',
    'ImageList',
    'LoadOnce',
    'OwnPictures',
    'StudyImages',
    'UnreadableFileError',
    'VideoList',
    'check_config',
    'check_dataset',
    'corrupt',
    'facts_of',
    'guard_reading',
    'guard_runner',
]
