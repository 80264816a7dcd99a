"""The data plane: one TCP connection for each pair of ingress replica and engine replica, all sessions multiplexed.

Serve calls carry leases (who may use a slot); this link carries audio frames one way and frame results the other.
"""
