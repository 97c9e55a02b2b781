"""Detectron2's model zoo (Wu et al., 2019): today's baselines."""
