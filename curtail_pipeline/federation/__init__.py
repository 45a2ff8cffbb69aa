"""Flower: the local federation, control of runs, the server loop and the outer step."""
