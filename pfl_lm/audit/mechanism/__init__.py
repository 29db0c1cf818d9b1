"""Statistical tests of the running mechanism."""
