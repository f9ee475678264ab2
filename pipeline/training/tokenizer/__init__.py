"""training/tokenizer."""
