"""Three layers: a small model for calls, a mid-sized one for what happens between them, a large one for plans."""
