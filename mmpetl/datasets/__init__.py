"""Data sets that upstream lacks, and checks of data on disk."""

from mmpetl.datasets.checks import check_config, check_dataset
from mmpetl.datasets.dense_tasks import DenseTasks
from mmpetl.datasets.fgvc import FGVC, FGVC_SETS
from mmpetl.datasets.reading import UnreadableFileError, guard_reading, guard_runner
from mmpetl.datasets.vtab import VTAB, VTAB_TASKS

__all__ = [
    'FGVC',
    'FGVC_SETS',
    'VTAB',
    'VTAB_TASKS',
    'DenseTasks',
    'UnreadableFileError',
    'check_config',
    'check_dataset',
    'guard_reading',
    'guard_runner',
]
