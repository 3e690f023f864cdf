"""What an autoencoder may be trained for beside pixels and a prior; each is a block of its config."""
