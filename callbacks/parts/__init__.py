"""Drawing and attribution for callbacks."""
