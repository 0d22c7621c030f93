"""Evaluation: cases, backends, strict matching, metrics and reports. Imports nothing of training."""
