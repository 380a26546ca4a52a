"""The coordinator: it sees more than one site, and of each only arrays and sums."""
