"""Runs over several hosts: where a host stands among them, how they meet, and how they end together."""
