"""The coupled penalty method: what it carries, the pieces of its step, and several starts at once."""
