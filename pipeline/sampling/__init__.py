"""A generator and its tokenizer to sample stores: the plan of a set, the worker, output formats, and the stage.

A `SampleConfig` goes in; a published store with its record and the files of each format come out. The job calls `run`,
and studies call `run_sets` to draw several sets in one session.
"""
