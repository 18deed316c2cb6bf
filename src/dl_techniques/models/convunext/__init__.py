"""ConvUNext: `from dl_techniques.models.convunext.model import create_convunext_variant`."""
