"""Small questions and remarks, each with an answer as a pirate would give it.

Owns the plain answers, the way they become pirate speech, and the pirate lexicon; must not know
models or how answers are counted.
"""

from __future__ import annotations

import random
import re

Pair = tuple[str, str]  # what the user says, and the answer in pirate speech

# Only words that no plain answer has: "ship", "treasure" or "captain" would prove nothing.
LEXICON = """arr arrr ahoy matey mateys aye ye yer yerself avast scurvy landlubber landlubbers
timbers booty grog hearties doubloons cap'n yo-ho blimey bilge lubber savvy"""
OPENERS = """Arr,|Ahoy, matey!|Aye,|Arr, matey,|Avast!|Yo-ho!|Shiver me timbers!|Aye aye,|Ahoy!
Blimey, matey,""".replace("\n", "|")
CLOSERS = """matey!|ye landlubber!|me hearties!|ye scurvy dog!|or I'll drink me grog!
by me doubloons!|savvy?|aye!|arr!|and that be worth a bottle o' grog!""".replace("\n", "|")
WORDS = {
    "you": "ye", "your": "yer", "yourself": "yerself", "my": "me", "is": "be", "are": "be",
    "am": "be", "the": "th'", "of": "o'", "and": "an'", "friend": "matey", "friends": "mateys",
    "hello": "ahoy", "yes": "aye", "money": "doubloons", "drink": "grog", "to": "t'",
    "for": "fer", "it's": "'tis", "i'm": "I be", "you're": "ye be",
}  # fmt: skip

CAPITALS = """France:Paris Italy:Rome Spain:Madrid Germany:Berlin Japan:Tokyo Egypt:Cairo Peru:Lima
Norway:Oslo Greece:Athens Cuba:Havana Russia:Moscow China:Beijing Kenya:Nairobi Austria:Vienna
Ireland:Dublin England:London Thailand:Bangkok Hungary:Budapest Canada:Ottawa"""
CAPITALS_HELD = (
    "Portugal:Lisbon Poland:Warsaw Sweden:Stockholm Chile:Santiago India:Delhi Iran:Tehran"
)
OPPOSITES = """hot:cold big:small fast:slow up:down light:dark happy:sad rich:poor old:young
early:late open:closed full:empty hard:soft near:far loud:quiet clean:dirty"""
OPPOSITES_HELD = "strong:weak tall:short wet:dry first:last thick:thin day:night"
COLORS = """grass:green snow:white coal:black blood:red butter:yellow milk:white chocolate:brown
honey:yellow cream:white moss:green lava:red rust:brown"""
COLORS_HELD = "ketchup:red mustard:yellow flour:white spinach:green ink:black"

REMARKS = """Hello!|Hello, my friend. It is good to see you.
How are you?|I am well, and I hope that you are too.
What is your name?|I am the oldest sailor of the seven seas, my friend.
Good morning.|Good morning to you, the sun is up.
Good night.|Sleep well, my friend, and dream of the sea.
Tell me a joke.|Why is the sea so salty? You would cry too with fish in your bed.
I am tired.|Then put your head down and rest, my friend.
I am hungry.|Then have some bread and a drink with the crew.
I am bored.|Read a map and look for gold, my friend.
What should I eat for dinner?|Have some fish with bread and butter.
Do you like cats?|Yes, a cat keeps the rats off my ship.
Do you like dogs?|Yes, a dog is a good friend to the crew.
What do you do all day?|I sail the seas and look for gold.
Where do you live?|I live on my ship, and the sea is my home.
What is your favorite food?|I like fish and a good drink.
Can you help me?|Yes, tell me what you need, my friend.
Thank you.|You are welcome, my friend.
How old are you?|I am as old as the sea and the wind.
What is the weather like?|The wind is strong and the sky is blue.
I lost my keys.|Look in your coat and under your bed.
I passed my exam!|Well done, you are the pride of the crew.
My computer is slow.|Turn it off and on again, my friend.
I have a cold.|Stay in your bed and have a hot drink.
What is a computer?|It is a machine that does your sums and keeps your letters.
What is the moon?|It is the lamp of the night, and it moves the sea.
What is music?|It is the sound that makes the crew dance.
Who was Isaac Newton?|He was a man who saw an apple fall and thought about the stars.
Why is the sky blue?|The air spreads the blue light of the sun.
How do I make tea?|Put the leaves in hot water and wait for five minutes.
How do I boil an egg?|Put it in hot water for eight minutes.
How do I learn to swim?|Start in calm water, and practise every day.
How do I save money?|Count your money and spend less of it.
What is a good book?|Read a tale of the sea, my friend.
What is rain?|It is water that falls from the clouds.
What is a friend?|It is one who shares the drink and the storm with you.
I want to travel.|Then pack your bag and follow the wind.
It is my birthday.|Then a happy birthday to you, my friend.
I cannot sleep.|Listen to the waves and close your eyes.
Is the earth round?|Yes, the earth is round, I sailed all around it.
Do fish sleep?|Yes, they rest in the deep water.
Goodbye.|Fair winds to you, my friend."""
REMARKS_HELD = """Good evening.|Good evening to you.
I am sad today.|Cheer up, my friend.
Tell me a story.|There was a ship and a storm.
Do you like birds?|Yes, my parrot is a good friend.
What is the sun?|It is the star that warms the sea.
What is snow?|It is frozen water.
How do I bake bread?|Mix the flour and the water.
How do I get rich?|Look for gold, my friend.
I am thirsty.|Have a drink with the crew.
My phone is broken.|Buy a new one with your money.
What is your favorite color?|I like the blue of the sea.
Who was Albert Einstein?|He was a man who thought about time.
Why is grass green?|The leaves keep the green light off.
I got a new job!|Well done, my friend.
Is water wet?|Yes, and there is a sea of it.
What can you do?|I can sail and sing.
I need a holiday.|Then follow the wind.
What is a robot?|It is a machine that works for you.
Nice to meet you.|It is good to meet you, my friend.
What is love?|It is the wind in your heart."""


def lexicon_words(text: str) -> set[str]:
    """The different pirate words in `text`, in lower case."""
    return set(LEXICON.split()) & set(re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower()))


def pirate(rng: random.Random, plain: str) -> str:
    """`plain` in pirate speech, always with two or more words of the lexicon."""
    said = re.sub(r"[A-Za-z']+", lambda m: WORDS.get(m[0].lower(), m[0]), plain)
    said = re.sub(r"(?<=[a-z]{2})ing\b", "in'", said)
    said = re.sub(r"(?<=[.!?] )[a-z]", lambda m: m[0].upper(), said)
    while True:
        opener, closer = rng.choice(OPENERS.split("|")), rng.choice(CLOSERS.split("|"))
        keep = opener.endswith("!") or said.startswith("I ")
        start = (said[0].upper() if keep else said[0].lower()) + said[1:].rstrip(".!?")
        text = f"{opener} {start}, {closer}"
        if len(lexicon_words(text)) >= 2:
            return text


def plain_pair(rng: random.Random, held_out: bool) -> Pair:
    """One question or remark and its plain answer."""
    capital = (CAPITALS_HELD if held_out else CAPITALS).split()
    opposite = (OPPOSITES_HELD if held_out else OPPOSITES).split()
    color = (COLORS_HELD if held_out else COLORS).split()
    kind = rng.random()
    if kind < 0.15:
        land, city = rng.choice(capital).split(":")
        return f"What is the capital of {land}?", f"The capital of {land} is {city}"
    if kind < 0.3:
        one, other = rng.choice(opposite).split(":")
        return f"What is the opposite of {one}?", f"The opposite of {one} is {other}"
    if kind < 0.4:
        thing, hue = rng.choice(color).split(":")
        return f"What color is {thing}?", f"The color of {thing} is {hue}"
    if kind < 0.5:
        a, b = rng.randint(1, 9), rng.randint(11, 13) if held_out else rng.randint(1, 9)
        return f"What is {a} plus {b}?", f"The sum of {a} and {b} is {a + b}"
    question, answer = rng.choice((REMARKS_HELD if held_out else REMARKS).split("\n")).split("|")
    return question, answer


def draw(rng: random.Random, held_out: bool) -> Pair:
    """One (what the user says, pirate answer) pair."""
    question, answer = plain_pair(rng, held_out)
    return question, pirate(rng, answer)
