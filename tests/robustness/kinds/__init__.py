"""Cases, by what they are about."""
