"""Pickles as data: read without running anything, and written for programs that are not here."""
