"""The model that is used when none is named: where its parts come from, and how they are put together."""
