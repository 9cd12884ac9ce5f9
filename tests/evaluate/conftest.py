"Fixtures that several files of this folder take."

from tiny import small

__all__ = ["small"]
