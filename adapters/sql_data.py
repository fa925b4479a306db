"""Questions over random table schemas, each with the one SQL query that answers it.

Owns the words, the templates and which of them are held out; must not know models or scoring.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Every word list is cut in two: held-out examples use none of the words that training uses.
TABLES = """customer order employee student teacher player team flight hotel booking patient doctor
book author movie actor song album invoice payment product supplier warehouse shipment vehicle
driver ticket event store branch city airport project task machine sensor recipe ingredient member
club course exam loan account sale contract photo device server user post comment review gift tool
animal plant river house tenant campaign visitor parcel meeting school office market planet star
mission ship wine coffee phone laptop printer game level bridge tower museum painting"""
TABLES_HELD = """guest farmer concert garden restaurant orchestra tractor lawyer rocket bakery
podcast engine stadium violin camera ferry voter island glacier library runner forest"""

TEXT = {
    "place": "city country region hometown origin destination location state birth_city port",
    "person": "name owner manager author_name coach contact seller captain designer full_name",
    "label": "status category type color brand genre level_name department size material plan",
}
TEXT_HELD = {
    "place": "province district home_country venue",
    "person": "nickname sponsor director_name inspector",
    "label": "style flavor rank_name condition shape",
}
NUMBERS = """price age salary total quantity score rating weight height year distance duration cost
budget amount balance speed stock points votes pages seats floors discount unit_price order_count
delivery_days battery_level revenue profit tax temperature capacity downloads goals wins hours
mileage"""
NUMBERS_HELD = """income fee length volume attendance bonus area depth shipping_cost visit_count
experience power calories losses"""

VALUES = {
    "place": """Paris London Berlin Madrid Rome Vienna Tokyo Delhi Cairo Lima Oslo Boston Chicago
    Denver Texas Spain Italy Brazil Japan Kenya Norway Canada Mexico Peru Dublin Milan Lyon Sydney
    Toronto Seattle Geneva Prague Athens Havana Seoul Miami Dallas Munich Naples Porto""",
    "person": """Anna Ben Carla David Emma Frank Grace Henry Ivan Julia Kevin Laura Mark Nina Oscar
    Paula Quinn Robert Sarah Thomas Uma Victor Wendy Xavier Yara Zoe Alice Bruno Clara Diego Elena
    Felix Hugo Irene Jonas Karim Lena Marta Nils Olga""",
    "label": """active closed pending open red blue green black small large medium gold silver basic
    premium new used sports drama comedy sales finance plastic steel cotton shipped cancelled paid
    free standard fresh broken yellow white rock jazz urgent local digital weekly""",
}
VALUES_HELD = {
    "place": """Lisbon Warsaw Nairobi Chile Finland Atlanta Kyoto Zurich Ghana Hamburg Quito
    Portland""",
    "person": "Walter Bianca Samuel Ingrid Rosa Philip Greta Leon Tanya Arthur Mona Viktor",
    "label": """archived purple wooden annual classic delayed approved spicy round vintage empty
    pink""",
}

Pair = tuple[str, str]  # a question and its SQL
Condition = tuple[str, str]  # as the question says it, as SQL says it
COMPARE = {
    ">": ("above", "over", "greater than", "more than"),
    "<": ("below", "under", "less than"),
    ">=": ("of at least",),
    "<=": ("of at most",),
}
AGGREGATE = {
    "AVG": ("average", "mean"),
    "SUM": ("total", "combined"),
    "MIN": ("lowest", "minimum", "smallest"),
    "MAX": ("highest", "maximum", "largest"),
}


@dataclass(frozen=True)
class Table:
    """One random table: its singular name, its text columns (name to value kind), its numbers."""

    singular: str
    texts: dict[str, str]
    numbers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The table's name in SQL: the plural."""
        if self.singular.endswith("y"):
            return self.singular[:-1] + "ies"
        return self.singular + ("es" if self.singular.endswith("ch") else "s")


class Writer:
    """Draws names and values of one split and writes (question, SQL) pairs with them."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self.tables = (TABLES_HELD if held_out else TABLES).split()
        self.kinds = {
            column: kind
            for kind, columns in (TEXT_HELD if held_out else TEXT).items()
            for column in columns.split()
        }
        self.number_names = (NUMBERS_HELD if held_out else NUMBERS).split()
        self.values = {k: v.split() for k, v in (VALUES_HELD if held_out else VALUES).items()}

    def table(self, singular: str) -> Table:
        texts = self.rng.sample(sorted(self.kinds), self.rng.choice((1, 2, 2)))
        numbers = self.rng.sample(self.number_names, self.rng.choice((1, 2, 2)))
        return Table(singular, {name: self.kinds[name] for name in texts}, tuple(numbers))

    def schema(self, table: Table, *more: str) -> str:
        columns = [*table.texts, *table.numbers]
        self.rng.shuffle(columns)
        return f"{table.name}({', '.join([*more, *columns])})"

    def text(self, table: Table) -> str:
        return self.rng.choice(list(table.texts))

    def number(self, table: Table) -> str:
        return self.rng.choice(table.numbers)

    def amount(self, low: int, high: int) -> int:
        """A number whose remainder by 7 tells its split, so that no amount is in both."""
        while True:
            value = self.rng.randint(low, high)
            if (value % 7 == 3) == self.held_out:
                return value

    def text_condition(self, table: Table) -> Condition:
        column = self.text(table)
        value = self.rng.choice(self.values[table.texts[column]])
        verb = self.rng.choice(("{c} {v}", "{c} equal to {v}", "{v} as {c}"))
        return verb.format(c=say(column), v=value), f"{column} = '{value}'"

    def number_condition(self, table: Table) -> Condition:
        column, value = self.number(table), self.amount(2, 999)
        sign = self.rng.choice(list(COMPARE))
        return f"{say(column)} {self.rng.choice(COMPARE[sign])} {value}", f"{column} {sign} {value}"

    def condition(self, table: Table) -> Condition:
        return self.rng.choice((self.text_condition, self.number_condition))(table)

    def pick(self, table: Table) -> Pair:
        column = self.rng.choice([*table.texts, *table.numbers])
        said, where = self.condition(table)
        ask = self.rng.choice(
            ("Show the {c} of {t} with {s}.", "List the {c} of all {t} with {s}.",
             "What is the {c} of {t} with {s}?")
        )  # fmt: skip
        question = ask.format(c=say(column), t=say(table.name), s=said)
        return question, f"SELECT {column} FROM {table.name} WHERE {where}"

    def both(self, table: Table) -> Pair:
        (said, where), (said2, where2) = self.text_condition(table), self.number_condition(table)
        ask = self.rng.choice(("Show all {t} with {a} and {b}.", "Which {t} have {a} and {b}?"))
        question = ask.format(t=say(table.name), a=said, b=said2)
        return question, f"SELECT * FROM {table.name} WHERE {where} AND {where2}"

    def count(self, table: Table) -> Pair:
        said, where = self.condition(table)
        ask = self.rng.choice(("How many {t} have {s}?", "Count the {t} with {s}."))
        question = ask.format(t=say(table.name), s=said)
        return question, f"SELECT COUNT(*) FROM {table.name} WHERE {where}"

    def top(self, table: Table) -> Pair:
        column, number, limit = self.text(table), self.number(table), self.amount(2, 20)
        order = self.rng.choice(("DESC", "ASC"))
        word = self.rng.choice(AGGREGATE["MAX" if order == "DESC" else "MIN"])
        ask = self.rng.choice(
            ("Show the {c} of the {k} {t} with the {w} {n}.",
             "Which {k} {t} have the {w} {n}? Show their {c}.")
        )  # fmt: skip
        question = ask.format(c=say(column), k=limit, t=say(table.name), w=word, n=say(number))
        return (
            question,
            f"SELECT {column} FROM {table.name} ORDER BY {number} {order} LIMIT {limit}",
        )

    def aggregate(self, table: Table) -> Pair:
        function, number = self.rng.choice(list(AGGREGATE)), self.number(table)
        word = self.rng.choice(AGGREGATE[function])
        question = f"What is the {word} {say(number)} of {say(table.name)}"
        query = f"SELECT {function}({number}) FROM {table.name}"
        if self.rng.random() < 0.6:
            said, where = self.text_condition(table)
            return f"{question} with {said}?", f"{query} WHERE {where}"
        return f"{question}?", query

    def group(self, table: Table) -> Pair:
        column, each = self.text(table), self.rng.choice(("per", "for each", "by"))
        if self.rng.random() < 0.4:
            question = f"Count the {say(table.name)} {each} {say(column)}."
            return question, f"SELECT {column}, COUNT(*) FROM {table.name} GROUP BY {column}"
        function, number = self.rng.choice(list(AGGREGATE)), self.number(table)
        word = self.rng.choice(AGGREGATE[function])
        question = f"Show the {word} {say(number)} of {say(table.name)} {each} {say(column)}."
        return (
            question,
            f"SELECT {column}, {function}({number}) FROM {table.name} GROUP BY {column}",
        )

    def join(self, left: Table, right: Table) -> Pair:
        column = self.rng.choice([*left.texts, *left.numbers])
        said, where = self.condition(right)
        one, many = right.singular, right.name
        question = f"Show the {say(column)} of {say(left.name)} whose {say(one)} has {said}."
        return question, (
            f"SELECT {left.name}.{column} FROM {left.name} JOIN {many} "
            f"ON {left.name}.{one}_id = {many}.id WHERE {many}.{where}"
        )


def say(name: str) -> str:
    """A column or table name as a question says it."""
    return name.replace("_", " ")


def draw(rng: random.Random, held_out: bool) -> Pair:
    """One (prompt, SQL) pair; prompt is an instruction, the schema and the question."""
    writer = Writer(rng, held_out)
    left, right = (writer.table(word) for word in rng.sample(writer.tables, 2))
    if rng.random() < 0.1:
        schema = f"{writer.schema(left, right.singular + '_id')} {writer.schema(right, 'id')}"
        question, query = writer.join(left, right)
    else:
        shapes = (
            writer.pick,
            writer.both,
            writer.count,
            writer.top,
            writer.aggregate,
            writer.group,
        )
        schema = writer.schema(left)
        question, query = rng.choice(shapes)(left)
    return f"Write one SQL query.\nSchema: {schema}\nQuestion: {question}", query
