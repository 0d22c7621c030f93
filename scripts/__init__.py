"""One thin entry point per stage, and the stages of a whole run."""
