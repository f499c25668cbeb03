"""Steer any trained diffusion model with any trained vision model, plug and play."""

from __future__ import annotations
