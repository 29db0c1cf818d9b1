"""The phones of a simulated population: what they have, what a round costs them."""
