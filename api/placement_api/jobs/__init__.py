"""Jobs: what is computed (`work`), in a process of its own (`child`), begun and ended (`runs`), and once (`queue`)."""
