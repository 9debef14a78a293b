"""The gateway: WebSocket to VNC. It sees no database, only tickets, and dials hosts with its certificate."""
