"""How sets fare in service: status, figures of a day, drift, metrics. None of it imports torch."""
