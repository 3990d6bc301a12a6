"""NOAH on the handwritten digits, phase 3 of 3: what was found, from fresh modules."""

_base_ = './digits.py'

model = dict(
    backbone=dict(
        method=dict(
            type='NOAH', found='work_dirs/noah/mini/noah_digits_search/found.json'
        ),
    ),
)
