"""The front door in Python, which `headwater.open` opens: home, detector, store as objects."""
