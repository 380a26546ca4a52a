"""Figures of the software, each measured against a floor or a peer in the same run."""
