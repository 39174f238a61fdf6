"""Street scenes drawn by rule: 19 Cityscapes classes in perspective, in four domains.

``render_street`` draws one; ``python -m examples.streets --root DIR`` writes data sets of them.
See docs/streets.md.
"""

from examples.streets.domains import STYLES
from examples.streets.scene import render_street

__all__ = ["STYLES", "render_street"]
