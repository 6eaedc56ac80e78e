"""Estimates of memory and time before a run starts, from counted bytes and FLOPs: nothing is loaded or measured.

parts     the stacks of layers that a reader runs, each with its number of tokens
layer     activations that one layer saves for the backward pass
memory    bytes of a process at each moment of a training step
estimate  memory and FLOPs of a training run or an evaluation
devices   memory and speed of devices
plan      what fits a device; used by scripts/plan_memory.py, train.py and `table.py --plan`
"""
