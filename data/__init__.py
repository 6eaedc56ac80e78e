"""Datasets, prompts, tokenising, collating and metrics: everything between a file and a Batch, and after an answer."""
