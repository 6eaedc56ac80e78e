"""Benchmarks of CoMeT, called by scripts/bench/. Not here: anything that training or inference needs."""
