"""Marks on the fields of configs, for programs to read."""

from types import MappingProxyType

EXECUTION = MappingProxyType({"execution": True})
"""Metadata of a field that says where or how fast something runs, and never what comes out.

Such fields are left out of cards, checkpoints and comparisons: `field(default="sdpa", metadata=EXECUTION)`.
"""
