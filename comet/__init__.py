"""CoMeT (arXiv 2602.01766): see README.md in this folder."""
