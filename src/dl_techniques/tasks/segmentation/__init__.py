"""Classes of pixels, or labels that overlap."""
