"""COMI: coarse-to-fine context compression by marginal information gain (arXiv 2602.01719, ICLR 2026).

Code of this method only. What several methods share belongs to `breviary`.
"""
