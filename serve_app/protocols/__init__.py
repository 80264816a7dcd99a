"""One file for each wire format: thin translations between messages and session calls.

No dialect knows another one, and none knows the engine.
"""
