"""Real paths with real middleboxes; skipped loudly without root or the programs (see `testing.lab`)."""
