"""Sharded stores on disk: written once, verified on every read, streamed in one order."""
