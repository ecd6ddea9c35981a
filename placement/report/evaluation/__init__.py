"""The page of maps that were measured."""
