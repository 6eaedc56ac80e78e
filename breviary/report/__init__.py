"""Presents results: sweep reports and figures, published tables beside ours, training curves, the reading map's page.

Computing results and printing an evaluation's table belong to `evaluation`.
"""
