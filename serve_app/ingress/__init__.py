"""The ingress half: HTTP routes, WebSocket conversations, and the leases on engines behind them."""
