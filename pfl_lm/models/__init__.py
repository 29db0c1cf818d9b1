"""Language models: parameters, forward passes, losses, files."""
