"""Lower bounds that prove how good a placement is."""
