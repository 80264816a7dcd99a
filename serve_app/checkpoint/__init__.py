"""A checkpoint's files: where they are, and whether this service can use them. Without torch, so quickly checked."""
