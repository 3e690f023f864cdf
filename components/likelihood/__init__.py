"""Models with a likelihood: what they promise, dequantisation, and their bits per dimension."""
