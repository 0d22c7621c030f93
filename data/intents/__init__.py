"""Labelled intent data: what its rows look like, what their words mean, and which tools they call."""
