"""Commands about a home as a whole: what is in it, what is broken, what goes or leaves it."""
