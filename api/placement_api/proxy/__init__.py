"""`placement route`: a reverse proxy in front of serving engines that gives every request its home."""
