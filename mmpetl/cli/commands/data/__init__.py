"""Make, convert and verify data sets.

Examples:
  mmpetl data make --root data/mini --only digits
  mmpetl data convert vtab1k --processed vtab-1k.zip
  mmpetl data verify vtab
"""
