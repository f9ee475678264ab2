"""What a training config costs: parameters, FLOPs and memory, counted on tensors without data.

A config goes in, JSON data comes out. `rdpm describe` calls it.
"""
