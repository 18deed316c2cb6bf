"""Restoration: an image of another, in its own unit."""
