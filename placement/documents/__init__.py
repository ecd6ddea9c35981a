"""The JSON and YAML forms of what `core` has."""
