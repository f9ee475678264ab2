"""Images in: where they lie, how they become pixels, and the order in which training sees them."""
