"""New projects: a folder with recipes in which every key is explained, and that runs at once."""
