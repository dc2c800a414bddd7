"""Differential privacy: what a release hides, its noise, and what it costs; see docs/privacy.md.

`user.py` hides everything that one client sends (DP-FedAvg), `account.py` says what rounds of it cost.
"""
