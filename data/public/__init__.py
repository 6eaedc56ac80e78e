"""Public data sets: where their files come from, which are ready here, and those that need no download."""
