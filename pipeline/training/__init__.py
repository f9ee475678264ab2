"""Training on DeepSpeed engines: the tokenizer and the generator."""
