"""Everything that only a GPU can show, as parts of at most ten minutes: see `python -m benchmarks.gpu --help`."""
