"""Figures and tables, and the sentences that read them."""
