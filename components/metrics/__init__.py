"""Metrics: pure functions, plain tensors in, figures out. Each module defines the figures that it computes; knows no
path and no params.yaml."""
