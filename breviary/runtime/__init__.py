"""The process: checkout guard, device, ranks and collectives, timing, atomic file writes.

Nothing here knows of models, readers or configurations.
"""
