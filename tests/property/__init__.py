"""What holds for every input: hypothesis throws them."""
