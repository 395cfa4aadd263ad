"""Invertible parts and subnets that several heads are made of."""
