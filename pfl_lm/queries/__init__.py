"""Questions to phones: public cells that devices fill within bounds, and one noisy sum."""
