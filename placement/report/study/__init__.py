"""The page of a study of a trace."""
