"""What was done: performed procedure steps."""
