"""Flags of ``os.open`` under one name on every system: 0 where a system has no such thing to ask for."""

from __future__ import annotations

import os

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Refuse a symbolic link. Windows cannot: whoever opens a stranger's file asks first whether it is one."""
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
"""Do not wait for the other end of a named pipe; Windows keeps its pipes in a place of their own."""
NOT_INHERITED = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0)
BINARY = getattr(os, "O_BINARY", 0)
"""Bytes as they are: Windows would change the ends of lines."""
