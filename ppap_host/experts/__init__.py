"""Experts: patches for noise ranges, what teaches them, and what they cost."""
