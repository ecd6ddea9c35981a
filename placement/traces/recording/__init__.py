"""What the recorder sees of one forward of a model: requests, positions, caches, ends of rows, routing."""
