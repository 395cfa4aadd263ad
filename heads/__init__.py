"""What learns. `contract` says what a head is, `catalogue` lists them all."""
