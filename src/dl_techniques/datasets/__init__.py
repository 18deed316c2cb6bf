"""Images and what belongs to them: pairs, inspection, samples, batches; and the images that ship."""
