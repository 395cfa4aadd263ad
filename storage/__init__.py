"""What is kept: features (`store`, `upkeep`), models (`registry`), and inference (`serving`)."""
