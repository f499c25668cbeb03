"""Sampling: the loop, the solvers and their noise."""
