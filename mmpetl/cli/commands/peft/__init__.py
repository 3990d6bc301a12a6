"""Adapters of Hugging Face's peft: write one of a run, or make one a delta.

Examples:
    mmpetl peft export work_dirs/lora/mini/digits adapters/digits
    mmpetl peft import adapters/digits configs/plain.py deltas/digits
"""
