"""Jobs: what is computed (`work`), in a process of its own (`child`), and once (`queue`)."""
