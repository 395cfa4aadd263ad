"""Invertible parts that the flow heads share; all are FrEIA `InvertibleModule`s."""
