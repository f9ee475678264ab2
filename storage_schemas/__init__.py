"""The records that lie on disk, as frozen dataclasses: cards of models, and plans, commits and manifests of stores.

JSON data goes in and records come out, and the reverse. There is no I/O here, and nothing else of the project is
imported, so every room may use this one.
"""
