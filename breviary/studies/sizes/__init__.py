"""Reconstruction quality and time for every pair of encoder and decoder sizes, and nothing else."""
