"""File formats read closer than Pillow reads them."""
