"""The embedded base model: how it was made, and its weights."""
