"""Volumes, read and written as root although their owners are hostile.

Everything below a root is reached by descriptors: a name is resolved once, in a directory that
is held open, without following symlinks, and what it led to is compared with what was seen.
"""
