"""Noise and its removal."""
