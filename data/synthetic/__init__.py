"""What the generated suites (RULER, BABILong, lost in the middle) share: free text, words, token counts, layout.

alice.txt.gz is Alice's Adventures in Wonderland (Lewis Carroll, 1865; public domain), a paragraph a line.
"""
