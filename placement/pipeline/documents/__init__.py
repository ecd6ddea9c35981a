"""The JSON forms of what the pipeline answers."""
