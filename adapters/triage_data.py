"""Support tickets, each with the small JSON that sends it to a team.

Owns the sentences, the labels and which of them are held out; must not know models or scoring.
"""

from __future__ import annotations

import json
import random

Pair = tuple[str, str]  # a ticket with its instruction, and the JSON wanted for it
Phrases = dict[str, tuple[str, ...]]  # a label to the ways in which a ticket says it

# What went wrong tells the team; {p} is where the product is named. Held-out tickets are put
# together from the second set of each kind only, so no sentence of theirs was trained on.
TEAMS: Phrases = {
    "billing": (
        "I was charged twice for the {p} this month.",
        "The invoice for the {p} shows the wrong amount.",
        "I want a refund for my {p} subscription.",
        "My credit card was refused when I paid for the {p}.",
        "We never got a receipt for the {p} payment.",
        "The {p} still bills us although we cancelled.",
        "Please change the billing address for our {p} plan.",
        "Why did the price on my {p} bill go up?",
        "The discount is missing on our last {p} invoice.",
        "The tax number on the {p} invoice is wrong.",
        "Our bank sees a second payment for the {p}.",
        "I paid for the {p}, but the invoice is still marked as open.",
    ),
    "accounts": (
        "I forgot my password for the {p}.",
        "I cannot log in to the {p} any more.",
        "My account on the {p} is locked after three tries.",
        "The {p} does not accept my login code.",
        "Please remove a former colleague from our {p} account.",
        "A new employee needs permission to use the {p}.",
        "The password reset mail for the {p} never arrives.",
        "I lost my phone and cannot pass the two-factor check of the {p}.",
        "I need to change the email address of my {p} account.",
        "The {p} says that my user name is unknown when I sign in.",
        "Please make me an administrator of the {p}.",
        "Single sign-on to the {p} rejects all of our users.",
    ),
    "technical": (
        "The {p} crashes when I open a report.",
        "The {p} has been very slow since the update.",
        "I get error {n} from the {p} on every save.",
        "The {p} shows an empty screen after loading.",
        "Exports from the {p} come out damaged.",
        "The {p} loses my data when I press save.",
        "Search in the {p} returns nothing since yesterday.",
        "Uploading a file to the {p} fails with error {n}.",
        "The {p} freezes after a few minutes.",
        "The {p} times out after {n} seconds.",
        "The charts in the {p} do not load.",
        "The {p} stopped syncing last night.",
    ),
    "sales": (
        "We would like a quote for {n} licences of the {p}.",
        "Can we upgrade to the bigger {p} plan?",
        "What would {n} more seats for the {p} cost?",
        "Could someone give us a demo of the {p}?",
        "We want to buy the {p} for our new office.",
        "Do you offer the {p} at a price for schools?",
        "I would like to talk to a sales person about the {p}.",
        "Is there a free trial of the {p}?",
        "Which {p} plan do you recommend for {n} people?",
        "We are comparing offers and need prices for the {p}.",
        "Please send us a contract to buy the {p}.",
        "Do we get a better offer if we order {n} licences of the {p}?",
    ),
    "feedback": (
        "It would be great if the {p} had a dark mode.",
        "Please add keyboard shortcuts to the {p}.",
        "I have an idea for the {p}: a calendar view.",
        "I love the new look of the {p}, well done.",
        "My suggestion is to make the buttons of the {p} bigger.",
        "Could you add French to the {p} some day?",
        "I wish that the {p} could remember my filters.",
        "A feature request: tags in the {p}.",
        "We miss a way to sort by date in the {p}, please add it.",
        "Just wanted to say that the {p} is wonderful.",
        "I suggest that the {p} shows the weather too.",
        "It would be nice to have folders in the {p}.",
    ),
}
TEAMS_HELD: Phrases = {
    "billing": (
        "I see two charges for the {p} on my credit card.",
        "Please send a corrected invoice for the {p}.",
        "I cancelled the {p} and would like my money back.",
        "The payment for our {p} subscription was taken on the wrong day.",
    ),
    "accounts": (
        "My login to the {p} does not work, the password is refused.",
        "Please unlock my {p} account.",
        "I need access to the {p} for two new users.",
        "I cannot reset my password in the {p}.",
    ),
    "technical": (
        "The {p} crashes with error {n}.",
        "Since the last update the {p} does not load anything.",
        "Saving a file in the {p} fails every time.",
        "The {p} is so slow that reports time out.",
    ),
    "sales": (
        "We want to order {n} seats of the {p}, what is the price?",
        "Please send us an offer for the {p}.",
        "We are interested in buying the {p}, could we see a demo?",
        "Could a sales person call us about upgrading the {p}?",
    ),
    "feedback": (
        "It would be lovely if the {p} had a bigger font.",
        "I have a suggestion: please add a map to the {p}.",
        "Here is an idea for a new feature of the {p}: templates.",
        "I wish that the {p} had more colours.",
    ),
}
PRIORITIES: Phrases = {
    "high": (
        "This is very urgent.",
        "Our whole team is blocked.",
        "We cannot work at all until this is done.",
        "We lose money every hour.",
        "Please act immediately.",
        "It is an emergency for us.",
        "Our customers are waiting right now.",
        "I need an answer within the hour.",
        "Everything has stopped here.",
        "We need this today, it is critical.",
    ),
    "medium": (
        "Please look at it this week.",
        "An answer in the next few days would be good.",
        "It slows us down, but we can go on.",
        "We have a workaround for now.",
        "Please answer by Friday.",
        "It is annoying, but we manage.",
        "Some of us are waiting for it, but we can still work.",
        "I hope to hear from you by the end of the week.",
        "We need this within a few days.",
        "It should be done before next week.",
    ),
    "low": (
        "There is no hurry.",
        "No rush.",
        "Whenever you have time.",
        "It is only a small thing.",
        "It is not important.",
        "This can wait until next month.",
        "Take your time.",
        "You can answer whenever you like.",
        "It does not matter much.",
        "Nothing depends on it.",
    ),
}
PRIORITIES_HELD: Phrases = {
    "high": (
        "This is extremely urgent, our work has stopped.",
        "Please help immediately.",
        "I need this right now, it is an emergency.",
        "We are blocked and lose customers.",
    ),
    "medium": (
        "We can still work, but please do it this week.",
        "Please come back to me by Thursday.",
        "A workaround helps for a few days.",
        "It is annoying and slows some of us down.",
    ),
    "low": (
        "There is no rush at all.",
        "It is a small matter and can wait.",
        "Answer whenever you have time.",
        "It is not important, take all the time you need.",
    ),
}
PRODUCTS: Phrases = {
    "mobile": ("mobile app", "iPhone app", "Android app", "phone app", "iOS app"),
    "web": ("website", "web portal", "browser version", "web dashboard", "web page"),
    "desktop": (
        "desktop client",
        "Windows program",
        "Mac program",
        "desktop software",
        "PC client",
    ),
    "api": ("API", "REST API", "API endpoint", "developer API", "API service"),
}
PRODUCTS_HELD: Phrases = {
    "mobile": ("Android phone app", "mobile application"),
    "web": ("web site", "browser portal"),
    "desktop": ("desktop program", "Windows client"),
    "api": ("API gateway", "public API"),
}
GREETINGS = ("Hi,", "Hello,", "Dear team,", "Good morning,", "Hey,", "")
GREETINGS_HELD = ("Hi there,", "Good afternoon,", "Dear support,", "")
PEOPLE = "Anna Ben Carla David Emma Frank Grace Henry Ivan Julia Kevin Laura Mark Nina"
PEOPLE_HELD = "Walter Bianca Samuel Ingrid Rosa Philip Greta Leon"


def draw(rng: random.Random, held_out: bool) -> Pair:
    """One (prompt, JSON) pair; the JSON has the keys team, priority and product in this order."""
    teams = TEAMS_HELD if held_out else TEAMS
    priorities = PRIORITIES_HELD if held_out else PRIORITIES
    products = PRODUCTS_HELD if held_out else PRODUCTS
    labels = {
        "team": rng.choice(list(teams)),
        "priority": rng.choice(list(priorities)),
        "product": rng.choice(list(products)),
    }
    problem = rng.choice(teams[labels["team"]]).format(
        p=rng.choice(products[labels["product"]]), n=rng.randint(11, 599)
    )
    parts = [problem, rng.choice(priorities[labels["priority"]])]
    if rng.random() < 0.3:
        parts.reverse()
    greeting = rng.choice(GREETINGS_HELD if held_out else GREETINGS)
    name = rng.choice((PEOPLE_HELD if held_out else PEOPLE).split())
    ticket = " ".join([greeting, *parts, rng.choice((f"Thanks, {name}", name, ""))]).strip()
    prompt = f"Triage this ticket. Answer with JSON: team, priority, product.\nTicket: {ticket}"
    return prompt, json.dumps(labels, separators=(",", ":"))
