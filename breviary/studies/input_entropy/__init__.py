"""Reconstruction quality against the entropy of documents under encoder and decoder, and nothing else."""
