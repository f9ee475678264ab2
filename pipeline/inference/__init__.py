"""Trained models at work: `RDPM` (labels to images, images to codes, edits) and `Codec` (pixels to codes and back).

NumPy arrays go in and come out, in batches of one shape. Users call `RDPM`; tokenizing, sampling, evaluation, training
and reporting call both.
"""
