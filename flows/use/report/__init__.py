"""What a page about the models of a set shows, gathered; `flows.pictures.page` makes it a page."""
