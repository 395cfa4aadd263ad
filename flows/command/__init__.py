"""The `headwater` command, one file a group of commands, with its tables and the demo."""
