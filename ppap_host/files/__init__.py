"""Reading what is not ours, and writing what must not be lost."""
