"""Raw examples → chat-format tool-call pairs, with every row accounted for in a data card."""
