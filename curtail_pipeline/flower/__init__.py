"""Flower and its processes: how orders reach sites and who is alive.

Decided here: processes, addresses, messages in flight. Never what a message says or what becomes of a result.
"""
