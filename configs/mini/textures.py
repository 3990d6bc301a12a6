"""Eight patterns in any colours, in the layout of a specialised VTAB-1k task.

1,000 labelled images for training (800 and 200), 800 for the test, 32 x 32.
"""

_base_ = './digits.py'

model = dict(head=dict(num_classes=8))
train_dataloader = dict(dataset=dict(task='textures', num_classes=8))
test_dataloader = train_dataloader
