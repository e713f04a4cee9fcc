"""Tables of a Markov decision process: transitions, planning, sampling."""
