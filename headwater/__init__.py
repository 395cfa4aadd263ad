"""The words every part of Headwater shares: errors, specifications, the version.

This package imports nothing of the project and may be imported by all of it.
"""

from headwater.version import __version__ as __version__
