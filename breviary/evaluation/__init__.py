"""Evaluates readers: table rows and their configurations, the loop, results, intervals, tables, comparison, timing.

Figures and HTML pages belong to `report`.
"""
