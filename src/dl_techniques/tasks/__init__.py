"""What a model is asked to do: targets, decoding, scores, pictures. No Keras at import."""
