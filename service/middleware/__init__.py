"""ASGI middleware: gateway, API keys, rate limit, connection balance."""
