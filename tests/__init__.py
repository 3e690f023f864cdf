"""A package in name, because torch-fidelity installs one that is called `tests` too, which would win otherwise."""
