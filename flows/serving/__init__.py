"""A champion in service: what it is asked, what it said, and what people say of that."""
