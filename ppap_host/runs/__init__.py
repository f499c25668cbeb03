"""Runs: from a configuration to pictures with a record."""
