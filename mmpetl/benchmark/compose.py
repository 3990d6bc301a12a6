"""The old name of :mod:`mmpetl.benchmark.job_config`."""

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'METHOD': 'mmpetl.benchmark.job_config',
        'ROOT': 'mmpetl.benchmark.job_config',
        'UNRELATED': 'mmpetl.benchmark.job_config',
        'compose_job': 'mmpetl.benchmark.job_config',
        'config_hash': 'mmpetl.benchmark.job_config',
        'split_options': 'mmpetl.benchmark.job_config',
    },
)
