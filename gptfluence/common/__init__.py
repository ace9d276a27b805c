"""What every room may use: errors, files, provenance, progress, the hub."""
