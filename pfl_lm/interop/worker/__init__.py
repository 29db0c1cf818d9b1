"""What runs in the other Python; of these, the core imports ``frames`` alone."""
