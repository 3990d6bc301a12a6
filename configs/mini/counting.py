"""One to six figures to be counted, in the layout of a structured VTAB-1k task.

1,000 labelled images for training (800 and 200), 800 for the test, 32 x 32.
"""

_base_ = './digits.py'

model = dict(head=dict(num_classes=6))
train_dataloader = dict(dataset=dict(task='counting', num_classes=6))
test_dataloader = train_dataloader
