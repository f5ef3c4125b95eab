"""What is to be done: orders, patients, worklist."""
