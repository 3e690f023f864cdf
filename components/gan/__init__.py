"""What all GAN variants share: the two players' losses, and the remedies that any variant takes by params.yaml."""
