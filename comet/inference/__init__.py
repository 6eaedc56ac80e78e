"""Inference with constant memory: streams, cached contexts, sessions. Not here: training, and the layers themselves."""
