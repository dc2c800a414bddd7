"""Real peers without a server: rows cross between processes over libp2p, edge by edge."""
