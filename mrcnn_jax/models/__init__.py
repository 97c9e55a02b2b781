"""Layers and geometry composed into detectors."""
