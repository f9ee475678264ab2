"""What a user would pick instead, side by side: see `python -m benchmarks.peers --help`."""
