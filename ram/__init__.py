"""RAM, Read As HuMan (arXiv 2602.01840): relevant segments are read closely, the others skimmed into one vector."""
