"""Trains a reader: session, Trainer, data order, engines (DDP, ZeRO, pipeline), watchdog, log. Objectives have their own package."""
