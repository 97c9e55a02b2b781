"""Saving, restoring, importing and exporting."""
