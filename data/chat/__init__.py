"""Chats of several turns in ChatML: their files (dataset.py), and their token ids (pieces.py)."""
