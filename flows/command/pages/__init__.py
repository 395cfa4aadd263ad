"""Commands that write pages to look at. Heavy libraries are imported inside, as in all commands."""
