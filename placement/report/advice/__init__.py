"""The page and the tables of `advise`."""
