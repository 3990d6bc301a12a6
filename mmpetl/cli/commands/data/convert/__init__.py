"""Official archives into the layouts that recipes read.

Example:
  mmpetl data convert voc VOCtrainval_06-Nov-2007.tar VOCtest_06-Nov-2007.tar
"""
