"""Images: where they are, how they become pixels, and the order in which training sees them.

A path, URL or pattern goes in; listings, pixels of fixed views and batches of random views come out. The training of
the tokenizer, tokenizing and evaluation call this room.
"""
