"""Data sets: shards of rows, the images in them, the order of rows, keyed randomness."""
