"""Tables: the papers' with ours beside them, at the papers' scale and at a small one, and those measured here.

form reads configs/table; cells composes a cell's configuration; published prints; plan estimates; run trains and
evaluates what is missing; blocks and files write Markdown, CSV, LaTeX and HTML; measured is the form with parts,
grid_form and grid are that of readers by data set.
"""
