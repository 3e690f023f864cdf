"""Adversarial losses and the remedies that every GAN family takes by params.yaml."""
