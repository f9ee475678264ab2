"""What lies on disk: frozen records and array schemas. No I/O, and nothing of ours imported."""
