"""The last import of the server in tools/forked.py: what its children would each do again, numba's
lists of what it can compile, is done; and their garbage collectors leave alone what is shared.
"""

import gc

from numba.core.registry import cpu_target

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
gc.collect()
gc.freeze()
