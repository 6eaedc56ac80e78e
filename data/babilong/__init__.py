"""BABILong (Kuratov et al. 2024, arXiv 2406.10149), tasks qa1 to qa5: facts of a small world, scattered in free text.

`worlds` simulates the world and asks (bAbI: Weston et al. 2015, arXiv 1502.05698); `suite` hides its facts in noise.
The worlds are generated anew, so no number is one of the published files.
"""
