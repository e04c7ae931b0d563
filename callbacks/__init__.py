"""Callbacks: one behaviour a file, found by the file's name."""
