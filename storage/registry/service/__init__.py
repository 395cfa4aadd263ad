"""The model in service of an image set, and how it came there."""
