"""Where images lie and are looked at: their aspects, and regions of interest."""
