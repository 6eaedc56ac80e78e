"""The drawing of the two ways into the decoder, joining at the input and joining at depth, as SVG.

The drawing states no measurement. It has a ground of its own and follows the viewer's colour scheme, so it is readable
on light and on dark pages.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from breviary.runtime.files import write_text

WIDTH, HEIGHT = 920, 440

TITLE = "Joining at the input against joining at depth"

DESCRIPTION = (
    "Left, joining at the input: an encoder with its own copy of layers 0 to n-1 processes the context, its states are "
    "merged, an alignment block maps them to the decoder's input, and the decoder processes slots and question in all "
    "its layers. Right, joining at depth: the decoder's own layers 0 to n-1 process the context and the question, the "
    "context's states are merged, and slots and question continue in the decoder's layer n."
)

LIGHT = {"ground": "#f6f8fa", "card": "#ffffff", "ink": "#14171c", "dim": "#535a64", "line": "#8b939e"}
LIGHT |= {"context": "#56b4e9", "slot": "#0072b2", "question": "#e69f00", "extra": "#fbe3d6"}
DARK = {"ground": "#161a20", "card": "#232932", "ink": "#f2f5f8", "dim": "#b1bac4", "line": "#7d8792"}
DARK |= {"context": "#56b4e9", "slot": "#9ecbff", "question": "#e69f00", "extra": "#5a3322"}

RULES = """
  text { font: 15px system-ui, "Helvetica Neue", Arial, sans-serif; fill: var(--ink); text-anchor: middle; }
  .title { font-size: 19px; font-weight: 600; text-anchor: start; }
  .dim { fill: var(--dim); font-size: 14px; }
  .ground { fill: var(--ground); stroke: var(--line); }
  .box { fill: var(--card); stroke: var(--line); stroke-width: 1.5; }
  .extra { fill: var(--extra); stroke: var(--line); stroke-width: 1.5; }
  .context { fill: var(--context); } .slot { fill: var(--slot); } .question { fill: var(--question); }
  .arrow { fill: none; stroke: var(--dim); stroke-width: 2; marker-end: url(#head); }
  .rule { stroke: var(--line); }
  .head { fill: var(--dim); }
"""


class Drawing:
    """Shapes on a canvas of WIDTH by HEIGHT; coordinates are pixels from the upper left corner."""

    def __init__(self) -> None:
        size = {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": str(WIDTH), "height": str(HEIGHT)}
        names = {"role": "img", "aria-labelledby": "title description"}
        self.root = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, **names})
        self.add("title", id="title").text = TITLE
        self.add("desc", id="description").text = DESCRIPTION
        light, dark = (" ".join(f"--{name}: {value};" for name, value in each.items()) for each in (LIGHT, DARK))
        scheme = f"\n  :root {{ {light} }}\n  @media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
        self.add("style").text = scheme + RULES
        marker = ElementTree.SubElement(self.add("defs"), "marker", id="head", viewBox="0 0 8 8", refX="7", refY="4")
        marker.attrib |= {"markerWidth": "7", "markerHeight": "7", "orient": "auto-start-reverse"}
        ElementTree.SubElement(marker, "path", {"d": "M0 0 L8 4 L0 8 z", "class": "head"})
        self.box(1, 1, WIDTH - 2, HEIGHT - 2, kind="ground")

    def add(self, tag: str, kind: str | None = None, **attributes: str) -> ElementTree.Element:
        """A new element of class `kind`."""
        return ElementTree.SubElement(self.root, tag, ({} if kind is None else {"class": kind}) | attributes)

    def text(self, x: float, y: float, text: str, kind: str | None = None) -> None:
        """One line; x is its middle, or its start for kind "title"; y is its base line."""
        self.add("text", kind, x=f"{x:g}", y=f"{y:g}").text = text

    def box(self, x: float, y: float, width: float, height: float, *lines: str, kind: str = "box") -> None:
        """A rectangle with lines of text in its middle; the first line is the strongest."""
        self.add("rect", kind, x=f"{x:g}", y=f"{y:g}", width=f"{width:g}", height=f"{height:g}", rx="6")
        top = y + height / 2 + 5 - 10 * (len(lines) - 1)
        for i, line in enumerate(lines):
            self.text(x + width / 2, top + 20 * i, line, "dim" if i else None)

    def tokens(self, x: float, y: float, count: int, kind: str) -> None:
        """A row of `count` squares of kind "context" or "question", or of circles of kind "slot", 20 pixels each."""
        for i in range(count):
            if kind == "slot":
                self.add("circle", kind, cx=f"{x + 20 * i + 8:g}", cy=f"{y + 8:g}", r="8")
            else:
                self.add("rect", kind, x=f"{x + 20 * i:g}", y=f"{y:g}", width="16", height="16", rx="2")

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a head at the last."""
        self.add("polyline", "arrow", points=" ".join(f"{x:g},{y:g}" for x, y in points))


def draw_join(drawing: Drawing) -> None:
    """Both panels; information flows from the lower to the upper edge."""
    _draw_input(drawing, 24)
    drawing.add("line", "rule", x1="466", y1="24", x2="466", y2="416")
    _draw_depth(drawing, 492)


def _draw_input(drawing: Drawing, x: float) -> None:
    """Left panel: a column for the encoder, a column for the decoder."""
    drawing.text(x, 36, "join=input: the papers' form", "title")
    drawing.tokens(x + 2, 366, 9, "context")
    drawing.text(x + 90, 404, "context")
    drawing.arrow((x + 90, 360), (x + 90, 332))
    drawing.box(x, 262, 180, 68, "encoder", "copy of layers 0 to n−1", kind="extra")
    drawing.arrow((x + 90, 260), (x + 90, 232))
    drawing.box(x, 190, 180, 40, "merge")
    drawing.arrow((x + 90, 188), (x + 90, 160))
    drawing.box(x, 118, 180, 40, "alignment block", kind="extra")
    drawing.arrow((x + 180, 138), (x + 204, 138), (x + 204, 374), (x + 226, 374))
    drawing.tokens(x + 230, 366, 3, "slot")
    drawing.tokens(x + 300, 366, 4, "question")
    drawing.text(x + 258, 404, "slots")
    drawing.text(x + 338, 404, "question")
    drawing.arrow((x + 258, 360), (x + 258, 332))
    drawing.arrow((x + 338, 360), (x + 338, 332))
    drawing.box(x + 226, 118, 190, 212, "decoder", "layers 0 to L−1", "learns a new kind", "of input token")
    drawing.arrow((x + 321, 116), (x + 321, 88))
    drawing.text(x + 321, 78, "answer")
    drawing.text(x + 90, 78, "extra weights", "dim")
    drawing.add("rect", "extra", x=f"{x + 20:g}", y="66", width="16", height="14", rx="2")


def _draw_depth(drawing: Drawing, x: float) -> None:
    """Right panel: one stack, cut where the slots join."""
    drawing.text(x, 36, "join=depth: ours", "title")
    drawing.tokens(x + 2, 366, 9, "context")
    drawing.tokens(x + 300, 366, 4, "question")
    drawing.text(x + 90, 404, "context")
    drawing.text(x + 338, 404, "question")
    drawing.arrow((x + 90, 360), (x + 90, 332))
    drawing.arrow((x + 338, 360), (x + 338, 332))
    drawing.box(x, 262, 416, 68, "decoder, layers 0 to n−1", "the context does not depend on the question")
    drawing.arrow((x + 90, 260), (x + 90, 242))
    drawing.box(x, 200, 180, 40, "merge")
    drawing.tokens(x + 212, 212, 3, "slot")
    drawing.text(x + 296, 225, "slots")
    drawing.arrow((x + 182, 220), (x + 208, 220))
    drawing.arrow((x + 240, 208), (x + 240, 188))
    drawing.arrow((x + 338, 260), (x + 338, 188))
    drawing.box(x, 118, 416, 68, "decoder, layers n to L−1", "slots enter at the layer they come from")
    drawing.arrow((x + 321, 116), (x + 321, 88))
    drawing.text(x + 321, 78, "answer")
    drawing.text(x + 90, 78, "no extra weights", "dim")


def write_join_figure(path: Path) -> None:
    """Writes the drawing as an SVG file."""
    drawing = Drawing()
    draw_join(drawing)
    ElementTree.indent(drawing.root)
    write_text(path, ElementTree.tostring(drawing.root, encoding="unicode") + "\n")
