"""PatchCamelyon (VTAB-1k): linear probing as it stands."""

_base_ = '../../_base_/recipes/vtab.py'

dataset = 'patch_camelyon'
