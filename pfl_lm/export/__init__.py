"""Export to phones: graphs, formats, and what proves that they are the model of the run."""
