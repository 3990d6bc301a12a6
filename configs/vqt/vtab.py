# One query per block, 128 images: the demo of the authors of VQT. The head is as wide
# as the class tokens of thirteen layers.
recipes = 'vtab'
method = dict(type='VQT', num_tokens=1)
tables = dict(
    vqt="""
task      batch_size
cifar100  128
"""
)
