"""Oxford-IIIT Pet (VTAB-1k): linear probing as it stands."""

_base_ = '../../_base_/recipes/vtab.py'

dataset = 'oxford_iiit_pet'
