"""The REST service: its rooms are built in a later release."""
