"""The page that a browser shows: its markup, style and scripts, and what is put into them."""
