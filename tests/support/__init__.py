"""Helpers of the black-box tests: a Keylatch process, its stores, scripted upstreams, and raw
clients."""
