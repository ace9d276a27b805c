"""The GPT to train, and the encoders of text."""
