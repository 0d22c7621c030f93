"""From a trained checkpoint to verified GGUF files."""
