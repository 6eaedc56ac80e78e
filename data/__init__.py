"""Data sets, their conversion, prompts, tokenising, collating and metrics; no models.

Imports only breviary.contract and breviary.runtime.
"""
