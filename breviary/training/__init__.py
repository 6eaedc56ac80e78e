"""Trains a reader: session, Trainer, data order, engines (DDP, ZeRO, pipeline), watchdog and log.

What is supervised belongs to `objectives`.
"""
