"""Plan, run, resume, compare: the matrix of methods, datasets, backbones and seeds.

A plan (:mod:`.plan`) becomes jobs; an executor (:mod:`.executors`) runs them; each
leaves one record (:mod:`.records`). Tables, statistics and the report page read records
and nothing else.
"""
