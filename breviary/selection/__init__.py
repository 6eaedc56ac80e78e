"""Which parts of a context to keep: units of text, relevance scorers (one file each) and the rule that fills a budget.

Shared by readers that keep text and by methods that choose segments; readers themselves belong to `breviary.readers`.
"""
