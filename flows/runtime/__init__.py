"""Where and how things run: home, settings, console, Dask, servers, signals."""
