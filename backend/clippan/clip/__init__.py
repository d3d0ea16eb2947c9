"""Vision-language models: where their weights come from, loading, encoding, and dense features."""
