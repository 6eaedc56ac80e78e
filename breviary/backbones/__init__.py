"""Language models: fetching and loading them, running their layers, trained weights, token translation.

Nothing here knows of memories or readers.
"""
