"""The words every part of Headwater shares: errors, specifications, defaults.

This package imports nothing of the project and may be imported by all of it.
"""

__version__ = "0.1.0"
