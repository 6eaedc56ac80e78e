"""Readers and compressors that belong to no single paper, with their context caches and saved files.

A reader or compressor of one paper belongs to that paper's package; decoding and training belong to their own packages.
"""
