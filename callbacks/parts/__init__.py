"""Pictures that are not callbacks: precision and recall against a threshold."""
