"""Backbones: the interface of a trained diffusion model, and its noise."""
