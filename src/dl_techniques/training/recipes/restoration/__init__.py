"""Training of models that restore images."""
