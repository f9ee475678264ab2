"""Reporting: one self-contained HTML page about a run, and one about a token store.

In go finished exports, stores, metrics and training logs; out come HTML and PNG files. Nothing here trains, samples or
measures. `stage.run` is the stage behind `rdpm report`, and `inspection` serves `rdpm inspect`. Studies use `plotting`.
"""
