"""Requests, the trajectories that answer them, and the engine that packs many trajectories' calls."""
