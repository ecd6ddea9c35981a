"""The lowest rank imbalance alone."""
