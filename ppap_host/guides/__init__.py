"""Guides: the interface of a guidance model, and what guides are made of."""
