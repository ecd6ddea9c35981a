"""The page and the tables of a solution, with or without homes."""
