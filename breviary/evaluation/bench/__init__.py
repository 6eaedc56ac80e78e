"""Speed benchmarks on random tokens: what scripts/bench measures, its files and its command lines."""
