"""Measurements. Each runs as `python -m benchmarks.NAME` and prints, as its last line, one JSON object of ratios."""
