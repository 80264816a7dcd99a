"""The engine half: slots, the step loop, and the Serve deployment around them."""
