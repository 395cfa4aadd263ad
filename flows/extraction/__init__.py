"""Bringing a set's stores up to date: plan, extract, join pairs, repair."""
