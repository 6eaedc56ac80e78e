"""Configurations: keys and types, checks before any weight is loaded, and building a reader.

Files of runs belong to `runs`.
"""
