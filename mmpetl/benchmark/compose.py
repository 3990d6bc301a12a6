"""The old name of :mod:`mmpetl.benchmark.job_config` and ``config_digest``."""

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'METHOD': 'mmpetl.benchmark.job_config',
        'ROOT': 'mmpetl.benchmark.config_digest',
        'UNRELATED': 'mmpetl.benchmark.config_digest',
        'compose_job': 'mmpetl.benchmark.job_config',
        'config_hash': 'mmpetl.benchmark.config_digest',
        'split_options': 'mmpetl.benchmark.job_config',
    },
)
