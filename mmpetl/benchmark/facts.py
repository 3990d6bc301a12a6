"""The old name of :mod:`mmpetl.benchmark.run_facts`."""

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'backbone_of': 'mmpetl.benchmark.run_facts',
        'commit': 'mmpetl.benchmark.run_facts',
        'device': 'mmpetl.benchmark.run_facts',
        'peak_resident': 'mmpetl.benchmark.run_facts',
        'preprocessing_of': 'mmpetl.benchmark.run_facts',
        'release_peak': 'mmpetl.benchmark.run_facts',
        'settings_of': 'mmpetl.benchmark.run_facts',
        'task_of': 'mmpetl.benchmark.run_facts',
        'versions': 'mmpetl.benchmark.run_facts',
    },
)
