"""Weights that come with the package: one folder an encoder, written by `make weights`."""
