"""Normalizing flows: invertible nets with the logarithm of their Jacobian's determinant."""
