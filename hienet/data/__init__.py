"""Labelled structures."""
