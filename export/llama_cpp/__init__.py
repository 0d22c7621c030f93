"""OPT for llama.cpp itself: a patch, its build, and a comparison with our graph."""
