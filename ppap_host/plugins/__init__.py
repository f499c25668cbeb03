"""Plugins: the hooks, who implements them, and how they are contained."""
