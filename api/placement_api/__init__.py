"""The REST service: parses, calls the library, stores and answers. `placement serve` starts it."""
