"""tacit: post-training and inference with the signal that ordinary pipelines throw away."""

__version__ = "0.1.0"
