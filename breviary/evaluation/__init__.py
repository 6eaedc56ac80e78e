"""Evaluates readers: configuration of table rows, the loop, predictions and results, intervals, tables, comparison, timing.

Figures and HTML pages belong to `report`.
"""
