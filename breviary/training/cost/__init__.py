"""Memory and time of a run before it starts, by counting bytes and FLOPs: nothing is loaded or measured.

`parts` states which stacks of layers a reader runs on how many tokens, `layer` what one layer holds for the backward
pass, `memory` the bytes of a process at each moment of a training step, `estimate` memory and FLOPs of a whole run or
evaluation, `devices` what a device offers, `plan` what fits. scripts/plan_memory.py, train.py and `table.py --plan` use
the same numbers.
"""
