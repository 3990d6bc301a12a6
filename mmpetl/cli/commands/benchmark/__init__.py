"""Plans of many runs, their records, tables and report page.

Examples:
  mmpetl benchmark plan mini
  mmpetl benchmark run mini --out work_dirs/bench/mini
  mmpetl benchmark report --out work_dirs/bench/mini
"""
