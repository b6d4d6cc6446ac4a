"""What run directories say, as pictures and tables."""
