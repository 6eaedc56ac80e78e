"""Studies of what makes compression work: each measures small models trained here, then writes tables and figures.

Belongs here: the shared frame, measurements of small models, and one folder per study. Does not belong here: command
lines (scripts/study_*.py), sources of text (data), and measurements of one trained reader (breviary.evaluation).
"""
