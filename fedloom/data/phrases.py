# One pattern per line, and words as words, are easier to read and to extend:
# ruff: noqa: E501, SIM905
"""The words of the embedded task: sentence patterns, names, things.

In a pattern, ``{n}``, ``{m}``, ``{o}`` are three people, and ``{he}``, ``{him}``, ``{his}`` speak of the
first; ``{thing}``/``{things}`` are food or keepsakes, ``{others}`` are other ones, ``{keepsakes}``, ``{food}``
and ``{fruit}`` are of that kind alone; ``{box}``/``{boxes}`` and ``{bag}``/``{bags}`` are two kinds of
container. ``{a}`` and ``{b}`` are the numbers of the first operation in their order, ``{c}`` is the second
number of the second operation. Every number is 2 or more.
"""

from __future__ import annotations

PRONOUNS = {"f": ("she", "her", "her"), "m": ("he", "him", "his")}

NAMES = (
    *((name, "f") for name in "Anna Bella Clara Dina Emma Fatima Grace Hanna Ines Julia Kira Lena".split()),
    *((name, "f") for name in "Maya Nora Olga Priya Rosa Sara Tina Uma Vera Wanda Yuki Zoe".split()),
    *((name, "m") for name in "Adam Ben Carlos David Emil Felix George Hugo Ivan Jonas Karim Leo".split()),
    *((name, "m") for name in "Max Nils Omar Paul Raj Sam Tom Umar Victor Walter Yusuf Zack".split()),
)

KEEPSAKES = (
    *((word, f"{word}s") for word in "marble sticker pencil button bead postcard magnet crayon".split()),
    *((word, f"{word}s") for word in "shell stamp badge ribbon candle notebook bracelet".split()),
    ("toy car", "toy cars"),
    ("paper star", "paper stars"),
    ("picture card", "picture cards"),
    ("paintbrush", "paintbrushes"),
    ("key ring", "key rings"),
)

FRUITS = (
    *((word, f"{word}s") for word in "apple orange lemon pear plum apricot melon fig".split()),
    ("peach", "peaches"),
    ("cherry", "cherries"),
    ("strawberry", "strawberries"),
    ("tomato", "tomatoes"),
)

FOODS = (
    *FRUITS,
    *((word, f"{word}s") for word in "cookie muffin pretzel walnut lollipop pancake bagel".split()),
    ("sandwich", "sandwiches"),
    ("rice cake", "rice cakes"),
)

THINGS = KEEPSAKES + FOODS

CONTAINERS = (
    *((word, f"{word}s") for word in "bag basket crate tray carton sack".split()),
    ("box", "boxes"),
)

PLACES = (
    "on the table",
    "in the kitchen",
    "in the classroom",
    "in the cupboard",
    "on the counter",
    "in the storeroom",
    "at the market stand",
    "in the camp kitchen",
    "in the club room",
    "on the porch",
)

ONE_STEP: dict[str, tuple[str, ...]] = {
    "add": (
        "{n} has {a} {things}. {He} buys {b} more. How many {things} does {n} have now?",
        "{n} has {a} {things} and {m} has {b} {things}. How many {things} do they have together?",
        "There are {a} {things} {place}. {n} brings {b} more. How many {things} are there {place} now?",
        "{n} buys {a} {things} on Monday and {b} {things} on Tuesday. How many {things} does {he} buy in all?",
        "One {box} holds {a} {things} and another {box} holds {b} {things}. How many {things} do the two {boxes} hold together?",
        "{n} had {a} {things} before {m} gave {him} {b} more. How many {things} does {n} have now?",
        "A shop sells {a} {things} in the morning and {b} in the afternoon. How many {things} does it sell that day?",
        "{n} collects {a} {keepsakes}. {m} collects {b} more {keepsakes} than {n}. How many {keepsakes} does {m} collect?",
        "{n} spends {a} dollars on {things} and {b} dollars on {others}. How many dollars does {he} spend in total?",
        "A bus carries {a} children. At the next stop {b} more children get on. How many children are on the bus now?",
        "{n} reads {a} pages before lunch and {b} pages after lunch. How many pages does {he} read altogether?",
        "After giving {a} {things} to {m}, {n} still has {b} {things}. How many {things} did {n} have at first?",
        "{n} is {a} years old. How old will {he} be in {b} years?",
        "A farmer has {a} hens and {b} ducks. How many birds does the farmer have in all?",
        "{n} owns {a} old {keepsakes} and {b} new {keepsakes}. How many {keepsakes} does {he} own?",
        "There are {a} girls and {b} boys in a club. How many children are in the club?",
        "{n} walks {a} minutes to the bus stop and then rides the bus for {b} minutes. How many minutes does the trip take?",
        "A cook puts {a} {fruit} into a bowl and adds {b} more. How many {fruit} are in the bowl now?",
    ),
    "subtract": (
        "{n} has {a} {things}. {He} gives {b} of them to {m}. How many {things} does {n} have left?",
        "There are {a} {things} {place}. {n} takes {b} of them away. How many {things} are left {place}?",
        "{n} brings {a} {food} to a party. The guests eat {b} of them. How many {food} are left?",
        "A shop has {a} {things} and sells {b} of them. How many {things} does the shop still have?",
        "{n} has {a} {things} and {m} has {b} {things}. How many more {things} does {n} have than {m}?",
        "{n} wants to collect {a} {keepsakes} and already has {b}. How many more {keepsakes} does {he} need?",
        "A book has {a} pages. {n} has read {b} of them. How many pages are left to read?",
        "{n} has {a} dollars and spends {b} dollars on {things}. How many dollars does {he} have left?",
        "A bus carries {a} people. At a stop {b} people get off. How many people are still on the bus?",
        "{n} and {m} have {a} {things} together, and {b} of them belong to {m}. How many {things} belong to {n}?",
        "{n} buys {a} {keepsakes}, but {b} of them are damaged. How many {keepsakes} are not damaged?",
        "{n} has {a} {things} after {m} gives {him} {b}. How many {things} did {n} have before?",
        "A rope is {a} meters long. {n} cuts off {b} meters. How many meters long is the rope now?",
        "Of {his} {a} {keepsakes}, {n} loses {b}. How many {keepsakes} does {he} still have?",
        "A room has {a} seats, and {b} of them are taken. How many seats are free?",
        "Of the {a} children in a class, {b} are at home today. How many children of the class are at school?",
        "{n} picks {a} {fruit}, but {b} of them are not ripe. How many {fruit} are ripe?",
        "There were {a} {things} in a {box}. {n} took out {b}. How many {things} are still in the {box}?",
    ),
    "multiply": (
        "{n} has {a} {boxes} with {b} {things} in each. How many {things} does {n} have?",
        "There are {a} {boxes} {place}. Each {box} holds {b} {things}. How many {things} are there in all?",
        "{n} buys {a} {things}. Each {thing} costs {b} dollars. How many dollars does {n} pay?",
        "{n} reads {a} pages a day for {b} days. How many pages does {he} read?",
        "A garden has {a} rows of flowers with {b} flowers in every row. How many flowers are in the garden?",
        "Each of {a} children brings {b} {things} to school. How many {things} do they bring altogether?",
        "{n} sells {a} {things} for {b} dollars each. How many dollars does {he} earn?",
        "{n} has {a} {keepsakes}. {m} has {b} times as many. How many {keepsakes} does {m} have?",
        "One {thing} costs {a} dollars. How many dollars do {b} {things} cost?",
        "A team has {a} players. How many players are in {b} such teams?",
        "{n} works {a} hours a day. How many hours does {he} work in {b} days?",
        "A shelf can hold {a} books. How many books can {b} such shelves hold?",
        "{n} walks {a} miles every week. How many miles does {he} walk in {b} weeks?",
        "{n} puts {a} photos on every page of an album. How many photos are on {b} pages?",
        "A cook fills {a} plates with {b} {food} each. How many {food} are on the plates?",
        "{n} saves {a} dollars a week. How many dollars does {he} save in {b} weeks?",
        "A wall has {a} rows of {b} tiles. How many tiles are on the wall?",
        "{n} gives {a} friends {b} {things} each. How many {things} does {he} give away?",
    ),
    "divide": (
        "{n} puts {a} {things} equally into {b} {boxes}. How many {things} are in each {box}?",
        "{n} shares {a} {things} equally among {b} friends. How many {things} does each friend get?",
        "{n} packs {a} {things} in {boxes} that hold {b} each. How many {boxes} does {n} need?",
        "{n} pays {a} dollars for {b} {things}. All cost the same. How many dollars does one {thing} cost?",
        "A class of {a} children forms {b} equal groups. How many children are in each group?",
        "{n} reads a book of {a} pages in {b} days, the same number each day. How many pages does {he} read a day?",
        "There are {a} chairs in {b} equal rows. How many chairs are in each row?",
        "{n} has {a} dollars. A ticket costs {b} dollars. How many tickets can {he} buy?",
        "{n} cuts a rope of {a} meters into pieces of {b} meters. How many pieces does {he} get?",
        "{n} earns {a} dollars in {b} hours. How many dollars does {he} earn in one hour?",
        "{n} has {a} {keepsakes}, which is {b} times as many as {m} has. How many {keepsakes} does {m} have?",
        "A farmer plants {a} trees in rows of {b}. How many rows are there?",
        "A cook shares {a} {food} equally among {b} plates. How many {food} are on each plate?",
        "{n} needs {a} {things}. They are sold in packs of {b}. How many packs must {n} buy?",
        "A teacher hands out {a} {keepsakes}, and every child gets {b}. How many children get {keepsakes}?",
        "{n} runs {a} miles in {b} days, the same distance each day. How many miles does {he} run a day?",
        "A machine makes {a} {keepsakes} in {b} minutes at a steady pace. How many does it make in one minute?",
        "{n} has {a} {food}. {He} eats {b} of them every day. For how many days do the {food} last?",
    ),
}

# After each of these, {n} has the result's number of {things}, and has no others that the text speaks of.
BEGINNINGS: dict[str, tuple[str, ...]] = {
    "add": (
        "{n} has {a} {things} and buys {b} more.",
        "{n} gets {a} {things} from {his} mother and {b} {things} from {his} father.",
        "{n} buys {a} {things} on Monday and {b} {things} on Tuesday.",
        "{n} takes {a} {things} from one {box} and {b} {things} from another.",
        "{n} has {a} {things}, and {m} gives {him} {b} more.",
    ),
    "subtract": (
        "{n} has {a} {things} and gives {b} of them to {m}.",
        "{n} buys {a} {things}, but loses {b} of them on the way home.",
        "{n} has {a} {things} and sells {b} of them.",
        "{n} takes {a} {things} out of a {box} and puts {b} of them back.",
        "{n} and {m} buy {a} {things} together. {m} keeps {b} of them, and {n} keeps the rest.",
    ),
    "multiply": (
        "{n} buys {a} {boxes} with {b} {things} in each.",
        "{n} gets {a} {things} from each of {his} {b} friends.",
        "{n} buys {a} {things} a day for {b} days.",
        "{n} owns {a} {boxes}, and every {box} holds {b} {things}.",
        "{n} buys {a} packs of {b} {things}.",
    ),
    "divide": (
        "{m} shares {a} {things} equally among {b} children, and {n} is one of them.",
        "{m} puts {a} {things} equally into {b} {boxes} and gives one {box} to {n}.",
        "{n} pays {a} dollars for {things} that cost {b} dollars each.",
        "A shop packs {a} {things} equally into {b} {boxes}, and {n} buys one {box}.",
        "A team of {b} people wins {a} {things} and shares them equally. {n} is on the team and takes one share.",
    ),
}

ENDINGS: dict[str, tuple[str, ...]] = {
    "add": (
        "Then {o} gives {n} {c} more {things}. How many {things} does {n} have now?",
        "After that, {n} buys {c} more {things}. How many {things} does {he} have in all?",
        "Now {o} has {c} more {things} than {n}. How many {things} does {o} have?",
        "{o} has {c} {things}. How many {things} do {n} and {o} have together now?",
    ),
    "subtract": (
        "Then {n} gives {c} {things} to {o}. How many {things} does {he} have left?",
        "Later {n} sells {c} {things}. How many {things} does {he} still have?",
        "Now {o} has {c} fewer {things} than {n}. How many {things} does {o} have?",
        "After that, {n} gives away {c} {things}. How many {things} are left?",
    ),
    "multiply": (
        "Now {o} has {c} times as many {things} as {n}. How many {things} does {o} have?",
        "Then {n} sells all {his} {things} for {c} dollars each. How many dollars does {he} get?",
        "{n} needs {c} minutes to wrap each {thing}. How many minutes does it take to wrap all {his} {things}?",
        "Later {n} trades each {thing} for {c} {others}. How many {others} does {he} get?",
    ),
    "divide": (
        "Then {n} puts all {his} {things} equally into {c} {bags}. How many {things} are in each {bag}?",
        "Then {n} shares all {his} {things} equally among {c} children. How many {things} does each child get?",
        "Then {n} packs all {his} {things} in {bags} that hold {c} each. How many {bags} does {he} need?",
        "Now {n} has {c} times as many {things} as {o}. How many {things} does {o} have?",
    ),
}
