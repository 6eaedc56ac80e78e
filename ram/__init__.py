"""RAM, Read As HuMan (arXiv 2602.01840): relevant segments are read closely, the others are skimmed into one vector.

Code of this method only. What several methods share belongs to `breviary`.
"""
