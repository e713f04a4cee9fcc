"""Environments of the library's own, one file each: pure functions in JAX."""

from bilevel_rl.control.environments.arm import Arm
from bilevel_rl.control.environments.bounded import Bounded
from bilevel_rl.control.environments.cartpole import CartPole
from bilevel_rl.control.environments.combination_lock import CombinationLock
from bilevel_rl.control.environments.feed import Feed
from bilevel_rl.control.environments.inventory import Inventory
from bilevel_rl.control.environments.lqg import LQG
from bilevel_rl.control.environments.market import Market
from bilevel_rl.control.environments.maze import Maze
from bilevel_rl.control.environments.open_loop import OpenLoop
from bilevel_rl.control.environments.pendulum import Pendulum
from bilevel_rl.control.environments.stakes import Stakes

ALL = (Pendulum, CartPole, LQG, Bounded, Inventory, Market, Feed, Maze, Arm, CombinationLock, OpenLoop, Stakes)

__all__ = [
    "ALL", "LQG", "Arm", "Bounded", "CartPole", "CombinationLock", "Feed", "Inventory", "Market", "Maze", "OpenLoop",
    "Pendulum", "Stakes",
]  # fmt: skip
