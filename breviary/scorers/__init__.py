"""Training-free eviction of keys and values: one scorer a file, each deciding what a decoder layer keeps of a context.

`base.py` defines the interface; readers/cache_selection.py runs the decoder, asks a scorer and keeps the best entries.
"""
