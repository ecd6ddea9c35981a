"""What maps cost step by step, as a server runs a trace, and what a uniform router would cost at the same size."""
