"""Results that travel: finished runs as one archive, checked when it is written and when it is taken in."""
