"""The payload: which coordinates of the model travel in a round."""
