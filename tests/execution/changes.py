"""Changes of a defense that each alter its answers: one generator function for each kind of change.

Each yields the defense before the change and the defense after it, and makes the change in between. What a kind needs
is in a `World`: a folder of Python modules of its own, and an amount that is drawn at random.
"""

from __future__ import annotations

# Each of these modules adds its kinds of changes to the two dictionaries.
from tests.execution import changes_of_code, changes_of_functions, changes_of_state
from tests.execution.worlds import HIDDEN, SEEN, Change, World

__all__ = ["HIDDEN", "SEEN", "Change", "World", "changes_of_code", "changes_of_functions", "changes_of_state"]
