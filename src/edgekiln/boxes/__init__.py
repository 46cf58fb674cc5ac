"""Machines that are not one's own: rented boxes, containers; what they are and what they allow."""
