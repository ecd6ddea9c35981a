"""What maps cost step by step, in tables."""
