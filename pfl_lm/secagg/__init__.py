"""Secure aggregation: the server learns a sum of enough reports and nothing else."""
