"""Processes that work together: launch variables, how they meet, locks on folders."""
