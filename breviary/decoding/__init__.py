"""Decoding: the loop over next-token logits, and the decoder's cache with a memory in it.

Sequences are assembled in breviary.memory; readers choose what is decoded.
"""
