"""One federated run: its scenario, its rounds, its records."""
