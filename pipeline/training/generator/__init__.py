"""training/generator."""
