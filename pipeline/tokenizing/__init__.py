"""tokenizing."""
