"""edgekiln: language models in, phone-ready bundles out."""

__version__ = "0.1.0"
