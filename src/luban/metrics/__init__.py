"""What is measured: streaming sums that merge over ranks, and intervals around them."""
