"""OpenAI's published diffusion models as parts of ppap-host."""
