"""The commands of the command line, one module for what belongs together.

A command parses options, opens what is needed for a scope, calls one function of a room below, and
says what came of it. It decides nothing itself. ``agent.cli`` lists them.
"""
