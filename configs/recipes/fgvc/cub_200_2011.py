"""CUB-200-2011 (fine-grained): linear probing as it stands."""

_base_ = '../../_base_/recipes/fgvc.py'

dataset = 'cub_200_2011'
