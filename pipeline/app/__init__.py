"""The page to play on: a trained model in, a local web page out.

A page asks for drawings, which wait in one line and share calls of the models. `rdpm serve` calls this room.
"""
