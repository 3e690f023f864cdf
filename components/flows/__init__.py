"""Multi-scale normalizing flows as samplers."""
