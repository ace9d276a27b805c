"""A study's profile."""
