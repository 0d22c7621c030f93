"""A small model in place of a large one: sentences in, tool calls out."""

__version__ = "0.1.0"
