"""RESISC45 (VTAB-1k): linear probing as it stands."""

_base_ = '../../_base_/recipes/vtab.py'

dataset = 'resisc45'
