"""Metadata on the fields of configs."""

from types import MappingProxyType

EXECUTION = MappingProxyType({"execution": True})
"""Metadata of a field that decides where or how fast something runs, and never what comes out.

Cards, checkpoints and comparisons leave such fields out. Use it as `field(default="sdpa", metadata=EXECUTION)`.
"""
