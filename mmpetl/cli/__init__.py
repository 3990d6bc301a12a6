"""The command ``mmpetl``: ``commands`` holds one module for each of its commands.

A module's place is its name: ``commands/benchmark/run.py`` is ``mmpetl benchmark run``.
Nothing heavy is imported before a command runs.
"""
