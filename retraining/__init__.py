"""Scheduled retraining: new data in, a model out, and into service only where it is measurably no worse."""
