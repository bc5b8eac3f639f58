"""Who may call, and how much: TLS, tokens, clients' limits, and the gate that every call passes (SECURITY.md)."""
