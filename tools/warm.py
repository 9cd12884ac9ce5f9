"""The last import of the server in tools/forked.py: what its children would each do again is done.

That is the import of what they run, which the server of Python 3.11 does not find by itself, first
outputs and figures, and numba's lists of what it can compile. Their garbage collectors leave alone
what is shared.
"""

import gc
import sys
from pathlib import Path

from matplotlib.backends import backend_registry
from nbformat.v4 import new_output
from numba.core.registry import cpu_target

sys.path.insert(0, str(Path(__file__).parent))
import forked  # noqa: E402, F401

backend_registry.resolve_gui_or_backend("inline")
new_output("stream", text="")
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
gc.collect()
gc.freeze()
