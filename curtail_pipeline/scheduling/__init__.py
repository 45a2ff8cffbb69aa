"""Who trains now: decisions, policies, plans, and the timing of rounds in virtual time.

Decided here: membership, rounds, steps per round. Never when a grid is curtailed (windows) or what is stored.
"""
