"""The catalogue of outputs, notebooks, the page and the command line."""
