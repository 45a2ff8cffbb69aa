"""Text in, token shards out: sources, tokenizer, dealing to sites, and the batches read from shards.

Decided here: which document is whose and what its tokens are. Never which tokens count (tokens).
"""
