"""Reconstruction quality against the gap between the training data of encoder and decoder, and nothing else."""
