"""What a person sees of a run: the report, one self-contained page, and the charts in it."""
