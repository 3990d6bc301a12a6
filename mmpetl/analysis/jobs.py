"""The old name of :mod:`mmpetl.analysis.further_runs`."""

from mmpetl.lazy import moved_names

__getattr__, __dir__ = moved_names(
    __name__,
    {
        'Variant': 'mmpetl.analysis.further_runs',
        'config_of': 'mmpetl.analysis.further_runs',
        'parse_variants': 'mmpetl.analysis.further_runs',
        'run_jobs': 'mmpetl.analysis.further_runs',
        'template': 'mmpetl.analysis.further_runs',
        'use_mini_data': 'mmpetl.analysis.further_runs',
        'varied': 'mmpetl.analysis.further_runs',
    },
)
