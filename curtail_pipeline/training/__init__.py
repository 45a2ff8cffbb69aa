"""What a site does with an order: model, optimisers, loss, snapshots, and the process that serves them.

Decided here: how a step is taken. Never which steps, on which text, or whether they count.
"""
