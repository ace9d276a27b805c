"""The runs that were published with the paper."""
