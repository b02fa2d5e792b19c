"""What a run will cost, found out before it begins."""
