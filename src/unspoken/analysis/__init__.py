"""What a chain is made of."""
