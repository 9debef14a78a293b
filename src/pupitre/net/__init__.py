"""Listening sockets, HTTP/1.1, limits of connections, the ops server."""
