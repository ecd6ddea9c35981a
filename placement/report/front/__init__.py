"""The table and the plot of a front."""
