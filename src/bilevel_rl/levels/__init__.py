"""Bi-level learning of any Torch policy: what does not depend on what the policy acts in."""
