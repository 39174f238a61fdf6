"""Street scenes drawn by rule: 19 Cityscapes classes in perspective, in three domains.

``render_street`` draws one; ``python -m pinmem.data.streets --root DIR`` writes data sets of them.
See docs/streets.md.
"""

from pinmem.data.streets.domains import STYLES
from pinmem.data.streets.scene import render_street

__all__ = ["STYLES", "render_street"]
