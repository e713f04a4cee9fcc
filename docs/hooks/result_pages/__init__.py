"""Writers of the pages of results, a file a topic; `results.py` says which file of figures belongs to which."""
