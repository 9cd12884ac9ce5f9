"Fixtures that several files of this folder take."

from screens import small

__all__ = ["small"]
