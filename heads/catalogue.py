"""Import every head file so that it registers: one line a head."""
