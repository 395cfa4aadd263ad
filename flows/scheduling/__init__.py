"""Retraining by itself: which sets when, what their inboxes hold, and the process that serves."""
