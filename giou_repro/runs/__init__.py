"""Run folders: how they are written, read and addressed, how a notebook or a sweep of many is run, and the environment.

Nothing here depends on what a run computes.
"""
