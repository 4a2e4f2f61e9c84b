"""Retrieval or long context, decided before anything is retrieved: Pre-Route, Self-Route, their judge and their evaluation."""
