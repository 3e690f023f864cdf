"""Few-step students of diffusion: what they are told, what they learn, how a few evaluations make a row."""
