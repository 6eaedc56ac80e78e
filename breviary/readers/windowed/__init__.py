"""Readers with windowed attention: sliding window and Transformer-XL, baselines of CoMeT's table (arXiv 2602.01766)."""
