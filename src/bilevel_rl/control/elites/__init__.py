"""Quality diversity: an archive of elites over an inner loop that learns, one file a part."""

from bilevel_rl.control.elites.archive import Archive
from bilevel_rl.control.elites.conditioned import inject, similarity
from bilevel_rl.control.elites.search import BehaviourTask, MapElites

__all__ = ["Archive", "BehaviourTask", "MapElites", "inject", "similarity"]
