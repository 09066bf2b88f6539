"""Published weights in other layouts, converted to ours and back."""
