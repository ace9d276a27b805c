"""Studies: a profile and all that follows from it."""
