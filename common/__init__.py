"""The treaty: what the coordinator and the hospitals must agree on to the bit."""
