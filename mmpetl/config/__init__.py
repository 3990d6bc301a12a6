"""Configs: names, reading, composing, writing out in plain upstream terms.

Nothing here runs a model or reads a delta; that is :mod:`mmpetl.apis`, a floor above.
"""
