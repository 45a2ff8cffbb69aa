"""Text sources, tokenizer, token shards and the token ledger."""
