"""Trained readers in use: opening a run or an exported folder, texts in and answers out, export with a model card.

Reading and writing checkpoints belongs to `runs`, encoded contexts and their files to `readers`.
"""
