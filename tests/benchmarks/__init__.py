"""Measurements, not tests: each module's `main()` measures one thing and ends with `emit`. `make bench` runs them."""
