"""Data on disk, written once for all processes and read memory-mapped: examples as JSON, and rows of Arrow files."""
