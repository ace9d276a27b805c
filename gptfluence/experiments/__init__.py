"""Experiments that train beyond the profile's own runs."""
