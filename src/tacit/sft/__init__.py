"""Supervised fine-tuning on `core.fit`."""
