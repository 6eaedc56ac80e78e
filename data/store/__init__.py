"""Data on disk, made once for all processes and read memory-mapped: examples as text, and rows of Arrow files."""
