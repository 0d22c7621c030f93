"""Our own tools and what people ask of them, one YAML file a domain; README.md has the format."""
