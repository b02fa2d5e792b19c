"""The verbs, in Python: each puts the parts of luban together to do one whole thing."""
