"""How sets fare in service: status, figures of a day, drift, metrics, cards. Nothing imports torch.

It changes nothing of what it looks at.
"""
