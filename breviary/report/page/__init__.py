"""The HTML page of a report: from evaluated readers to plain values, and from those to one file that needs no other."""
