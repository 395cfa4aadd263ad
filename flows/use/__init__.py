"""What is done with models and stores: predict, grid, drift."""
