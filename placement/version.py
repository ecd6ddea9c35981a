"""The version, alone in a file so that anything may import it."""

VERSION = "0.1.0"
