"""Diffusion split as in Karras et al. 2022: schedules give noise levels, objectives say what the net predicts, the
denoiser turns a net into (x, sigma) -> x0, solvers know only the denoiser.

Everything is written in the variance-exploding frame x = x0 + sigma * noise; an objective's `c_in` carries x into the
frame its net was defined in (x / sqrt(1 + sigma^2) for variance-preserving nets, x / (1 + sigma) for flow matching).
"""
