"""What tables and networks look like: every figure takes `ax` and returns it."""

from .networks import *  # noqa: F403
from .tables import *  # noqa: F403
