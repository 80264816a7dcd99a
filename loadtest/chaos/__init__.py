"""The chaos program: harm a service that is in use, and see what its sessions lose.

    python -m loadtest.chaos --scenario engine-kill --sessions 16

Every session's words are compared with those of an undisturbed run of the same audio on the same service.
"""
