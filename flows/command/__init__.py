"""The `headwater` command, one file a group of commands, with its tables and the demo.

A new command is a function in `job`, `look`, `begin` or `store`: `options.takes` gives it the
options of the settings that it needs. Imports inside functions are there for a quick start.
"""
