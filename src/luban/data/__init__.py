"""From files to windows of tokens, without torch: read, clean, split, tokenize, pack, prove what it came from."""
