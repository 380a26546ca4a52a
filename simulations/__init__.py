"""The whole federation on one machine, played with the real server and the real client."""
