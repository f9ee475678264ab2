"""Moving data, and the loops over it."""
