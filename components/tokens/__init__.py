"""What the samplers of tokens share: their data and conditions, logits and draws from them."""
