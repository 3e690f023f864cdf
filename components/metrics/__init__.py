"""Figures of merit of generated images, on the features of one extractor: quality, speed, and the protocol under which
two of them may be compared. Plain tensors in, plain numbers out; knows no path and no params.yaml."""
