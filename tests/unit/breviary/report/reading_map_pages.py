"""Pages of reading maps for tests: cards, a parser, hostile texts."""

from html.parser import HTMLParser

from breviary.memory.trace import spans_from_trace
from breviary.report.reading_map_marks import Card
from breviary.report.reading_map_page import TEMPLATES, render_page

STYLE = TEMPLATES / "reading_map.css"
TEXT = "Süß 日本 😀😀 end of\n\n the\ttext"
VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</style></title></div><!--",
    "' onmouseover='x",
    '" onclick="x',
    "&lt;&amp;&#60;",
    "\x00\x1b[31m\r\n\x7f\x85",
    "half \ud800 pair",
    "\u202eleft",
    "]]><![CDATA[",
    "javascript:x",
    "{{ 7 * 6 }}{% raw %}{#",
    "   ",
    "",
)


class Parsed(HTMLParser):
    """The elements of a page; fails where tags do not balance.

    characters  for each document: (character, {class: note} of all elements around it within the document)
    """

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.characters, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
        if dict(attrs).get("class") == "document":
            self.characters.append([])

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if not any(tag == "style" for tag, _ in self.open):
            self.text.append(data)
        depth = [i for i, (_, attributes) in enumerate(self.open) if attributes.get("class") == "document"]
        if depth:
            marks = {
                name: attributes.get("aria-label")
                for _, attributes in self.open[depth[0] + 1 :]
                for name in attributes.get("class", "").split()
            }
            self.characters[-1] += [(character, marks) for character in data]

    def marked(self, name, document=0):
        """The characters of a document inside elements of class `name`, as one text."""
        return "".join(character for character, marks in self.characters[document] if name in marks)

    def document(self, number=0):
        return "".join(character for character, _ in self.characters[number])


def byte_offsets(text):
    """Offsets of a byte-level tokenizer: a character has as many tokens as bytes."""
    return tuple((i, i + 1) for i, c in enumerate(text) for _ in c.encode("utf-8", "surrogatepass"))


def card(context="one two three", offsets=None, spans=None, **values):
    offsets = byte_offsets(context) if offsets is None else offsets
    spans = spans_from_trace(len(offsets), {}) if spans is None else spans
    return Card(
        **{
            "question": "Which?",
            "prediction": "two",
            "references": ("two",),
            "exact": True,
            "f1": 1.0,
            "context": context,
            "offsets": offsets,
            "gold": (),
            "spans": spans,
            "slots": 3,
            "requested": "4x",
        }
        | values
    )


def parsed(*cards, facts=(("Reader", "ram"),)):
    return Parsed(render_page(facts, cards))
