"""Benchmarks: methods side by side on the same targets, judged by networks that took no part."""
