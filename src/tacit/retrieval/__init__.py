"""Search in papers, and the metrics by which it is judged: lexical, by any sentence-transformers model, or both."""
