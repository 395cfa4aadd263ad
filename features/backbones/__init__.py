"""timm nets by module name: weights, nodes, arithmetic, put together in `backbone`."""
