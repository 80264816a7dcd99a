"""The life of one conversation in the ingress, independent of wire formats and of Ray."""
