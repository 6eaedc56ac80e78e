"""Training: the Trainer, engines (DDP, ZeRO, pipeline), data order, the watchdog and the metrics log.

Losses live in breviary.objectives and the readers; validation uses the loop of breviary.evaluation.
"""
