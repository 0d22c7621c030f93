"""llama.cpp's library through ctypes: a model file becomes logits, with no compiler and no torch."""
