"""Defects drawn into normal pictures: shapes, what they are painted with, and whole series."""
