"""What was produced: custody, the gate, the archive."""
