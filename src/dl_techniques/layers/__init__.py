"""Layers that Keras lacks: the ConvNeXt block and its bias-free, scale-equivariant relatives."""
