"""Gradients of a GPT: products along a run, and tangents."""
