"""What callbacks are built from: drawing and attribution."""
