"""Building blocks of memory: budgets, context encoders, grouping and merging, and the assembly of sequences.

Readers that combine these blocks belong to `breviary.readers`, a method's own steps to the method's package.
"""
