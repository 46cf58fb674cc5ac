"""What edgekiln is measured beside: other tools doing the same work their own way."""
