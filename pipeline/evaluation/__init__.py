"""What samples and reconstructions are worth: features, distances between distributions, and the report."""
