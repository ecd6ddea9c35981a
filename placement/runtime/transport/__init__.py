"""How ranks reach one another."""
