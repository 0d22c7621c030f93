"""Decoding under a grammar: the tools' schemas decide what the model may write next."""
