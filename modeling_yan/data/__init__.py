"""Data: loading, tasks, tokenizers, corpora, batches, and which reference of a source is learned."""
