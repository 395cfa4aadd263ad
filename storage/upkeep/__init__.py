"""What keeps a store well: history and tags, contents, verify, purge, collection, drift, export."""
