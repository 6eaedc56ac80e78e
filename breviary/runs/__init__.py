"""Run folders and their files: configuration and its schema versions, environment, checkpoints, released checkpoints.

Results of evaluations belong to `evaluation`, exported folders to `serving`.
"""
