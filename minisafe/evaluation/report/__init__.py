"""From answers and rulings to numbers, and from numbers to pages."""
