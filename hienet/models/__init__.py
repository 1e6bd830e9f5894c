"""Architectures: one a file."""
