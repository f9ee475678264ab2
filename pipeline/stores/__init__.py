"""Sharded stores on disk: written once, and verified on every read.

A plan and the columns of its shards go in; a published `Store` comes out, whose rows are read, checked and repaired
here. Rooms that make stores (tokenizing, sampling) and rooms that read them (stream, evaluation, reporting) call this
one.
"""
