"""Pictures and findings about runs that are done.

Examples:
  mmpetl analyse tsne work_dirs/lora/mini/digits
  mmpetl analyse agreement work_dirs/bench/mini
"""
