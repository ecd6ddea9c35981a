"""What proves the optimum of small layers."""
