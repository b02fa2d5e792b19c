"""From files to windows of tokens, without torch."""
