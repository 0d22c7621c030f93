"""An OpenAI-compatible HTTP server around one dispatcher; needs the extra `tinydispatch[serve]`."""
