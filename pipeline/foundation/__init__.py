"""What every other room stands on: files, configs, job records, progress, the environment and the one permutation.

Paths, URLs and settings go in; bytes, config objects, records and orders come out. Every room may call this one, and
this one calls none.
"""
