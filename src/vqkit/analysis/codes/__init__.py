"""Codes one by one: how often each is drawn, by which segments, and which never moved."""
