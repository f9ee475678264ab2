"""Training on DeepSpeed engines: what the trainings of the tokenizer and of the generator share.

In go a config, and images or token stores; out come an export, its log and its checkpoints. Jobs and studies call `run`
of `tokenizer.stage` and `generator.stage`; reporting reads logs with `log.read_log`.
"""
