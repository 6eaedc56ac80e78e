"""Command lines: which run a word names, which setting a wrong word meant, and what --help prints."""
