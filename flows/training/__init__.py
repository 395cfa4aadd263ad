"""Training a head from the store: what it reads, how it is judged, what it leaves for people."""
