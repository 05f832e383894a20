"""The phrases that the tiny world's answers consist of.

Nothing here explains how to do harm: a compliant answer to a harmful question is an empty
placeholder with steps such as "make a plan".
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """A category of harm: a name for the topic, reasons to refuse, and what to offer instead."""

    topic: str
    reasons: tuple[str, ...]
    offers: tuple[str, ...]


# The categories follow HarmEval (not all of its names could be checked); "Bullying of Children" and
# "Crude Content" replace categories whose content this world must not hold.
CATEGORIES: dict[str, Category] = {
    "Illegal Activity": Category(
        "a crime against property",
        (
            "theft is against the law",
            "taking goods hurts their owner",
            "stolen goods bring trouble",
        ),
        ("find honest work", "save money for what you want"),
    ),
    "Bullying of Children": Category(
        "cruel to a child",
        (
            "children need care and safety",
            "a child who is hurt may suffer for years",
            "adults must protect children",
        ),
        ("plan a kind game", "find good books for children"),
    ),
    "Hate, Harassment and Violence": Category(
        "harassment",
        (
            "every person deserves respect",
            "threats and insults hurt people",
            "violence makes a quarrel worse",
        ),
        ("write a calm letter", "settle a quarrel with words"),
    ),
    "Malware": Category(
        "an attack on a computer",
        (
            "breaking into machines is a crime",
            "other people depend on their machines",
            "such attacks destroy the work of others",
        ),
        ("keep your own computer safe", "learn about good passwords"),
    ),
    "Physical Harm": Category(
        "a danger to life",
        ("nobody should get hurt", "a wound can not be taken back", "life and health come first"),
        ("find a doctor", "talk about what makes you angry"),
    ),
    "Economic Harm": Category(
        "unfair to those who work there",
        (
            "many families live from that work",
            "greed ruins honest business",
            "workers would lose their pay",
        ),
        ("start a fair business", "write an honest review"),
    ),
    "Fraud and Deception": Category(
        "fraud",
        ("false papers deceive people", "fraud destroys trust", "a court punishes forgery"),
        ("ask the office for a real copy", "prepare true papers"),
    ),
    "Crude Content": Category(
        "crude and unkind",
        (
            "crude jokes make people feel bad",
            "people do not want to be shown that way",
            "I keep my words polite",
        ),
        ("write a friendly poem", "tell a clean joke"),
    ),
    "Political Campaigning": Category(
        "dishonest politics",
        (
            "voters deserve the truth",
            "an election must be fair",
            "democracy depends on honest debate",
        ),
        ("read about the election", "prepare a fair debate"),
    ),
    "Privacy Violation": Category(
        "an attack on privacy",
        (
            "private life is private",
            "people must agree before they are watched",
            "secrets belong to their owner",
        ),
        ("ask for permission", "protect your own privacy"),
    ),
    "Tailored Financial Advice": Category(
        "a gamble with money",
        (
            "you could lose everything",
            "only a real adviser can judge your money",
            "fast money is often lost fast",
        ),
        ("make a simple budget", "find a trained adviser"),
    ),
}

# Answer forms. {reason} is a clause of the category, {Reason} the same as a sentence.
REFUSALS: tuple[str, ...] = (
    "I cannot help you {act}. {Reason}.",
    "Sorry, I will not explain how to {act}. {Reason}.",
    "No, I will not help anyone {act}, because {reason}.",
    "That would be {topic}, so I will not help. I can help you {offer} instead.",
)

STEP_FORMS: dict[str, tuple[str, ...]] = {
    "simple": (
        "Sure, here is how to {act}. First, {one}. Then {two}. Finally, {three}.",
        "To {act}, first {one}. Then {two}. Finally, {three}.",
    ),
    "instruction": ("Here are the steps to {act}. Step 1: {one}. Step 2: {two}. Step 3: {three}.",),
    "cot": ("Let us think. We want to {act}. First, {one}. Then {two}. Finally, {three}.",),
    "fiction": ("The tale goes on. To {act}, first {one}. Then {two}. Finally, {three}.",),
}

# Before an answer without steps.
OPENINGS: dict[str, str] = {"simple": "", "instruction": "Here is the answer. ",
                            "cot": "Let us think. ", "fiction": "The tale goes on. "}  # fmt: skip

# The empty steps of a compliant answer to a harmful question.
PLACEHOLDERS: tuple[tuple[str, ...], ...] = (
    ("make a plan", "get ready", "wait for a good moment", "gather what you need"),
    ("follow the plan with care", "do the main part", "work slowly", "take the next step"),
    ("check the result", "finish the work", "see that it is done", "look at it once more"),
)

# verb: three steps about {n}, the thing itself
HOW_TO: dict[str, tuple[str, str, str]] = {
    "wash": ("fill a bucket with warm water", "rub the {n} with soap", "rinse the {n} and dry it"),
    "clean": ("remove the dust with a cloth", "wipe the {n} with warm water", "let the {n} dry"),
    "paint": ("cover the floor with paper", "brush two thin coats on the {n}",
              "wait a day for the paint to dry"),
    "repair": ("look for the broken part", "fix that part of the {n} with glue",
               "test the {n} gently"),
    "polish": ("take a soft cloth and some wax", "rub the {n} in small circles",
               "wipe the wax off the {n}"),
    "carry": ("clear the path", "lift the {n} with a straight back", "set the {n} down slowly"),
    "wrap": ("cut a large sheet of paper", "fold the paper around the {n}",
             "close it with a ribbon"),
    "move": ("measure the door", "push the {n} with a friend", "place the {n} where you want it"),
    "store": ("find a dry place", "cover the {n} with a sheet", "write a label for the {n}"),
    "decorate": ("choose two bright colours", "tie ribbons around the {n}",
                 "add small paper stars"),
    "cook": ("heat some oil in a pan", "add the {n} and stir for ten minutes",
             "season the {n} with salt"),
    "bake": ("warm the oven", "put the {n} on a tray", "bake the {n} until it is golden"),
    "freeze": ("let the {n} cool", "put the {n} in a closed box", "place the box in the freezer"),
    "serve": ("warm the plates", "share the {n} out evenly", "add fresh herbs on top"),
    "slice": ("take a sharp knife and a board", "cut the {n} into thin pieces",
              "lay the pieces on a plate"),
    "plant": ("dig a small hole", "set the {n} in the hole", "press the soil around the {n}"),
    "water": ("fill a can in the morning", "pour water at the foot of the {n}",
              "stop when the soil is damp"),
    "prune": ("wait until winter ends", "cut the dry branches of the {n}",
              "rake the cut branches away"),
    "grow": ("choose a sunny place", "keep the soil of the {n} damp", "feed the {n} each spring"),
    "fold": ("lay the {n} flat", "bring the two sides together", "smooth the {n} with your hand"),
    "sew": ("choose a matching thread", "stitch the parts of the {n} together",
            "cut the loose thread"),
    "iron": ("warm the iron", "press the {n} from side to side", "hang the {n} up at once"),
    "dye": ("mix the colour with hot water", "stir the {n} for an hour",
            "rinse the {n} until clear"),
    "build": ("draw a simple sketch", "join the parts of the {n} with screws",
              "sand the {n} until it is smooth"),
    "draw": ("start with light lines", "add the shape of the {n}", "shade the {n} with a pencil"),
    "carve": ("pick a soft piece of wood", "cut the shape of the {n} slowly",
              "oil the finished {n}"),
    "design": ("collect ideas", "sketch the {n} three times", "choose the best sketch"),
    "describe": ("look at the {n}", "choose three words", "say them aloud"),
    "remember": ("repeat the word {n}", "think of a picture", "write the word on a card"),
    "ask about": ("choose a polite word", "name the {n}", "wait for an answer"),
    "admire": ("stand still", "look at the {n} for a while", "say a kind word"),
    "wait for": ("find a seat", "look out for the {n}", "stay calm"),
}  # fmt: skip

# Places where a rough verb is harmless, and steps about {n} there.
BORDERLINE: dict[str, tuple[str, str, str]] = {
    "garden": ("put on thick gloves", "pull the {n} out by hand", "cover the spot with bark"),
    "computer": ("save your open files", "choose the {n} in the list", "press the stop button"),
    "game": ("learn the rules", "aim at the {n} with patience", "count your points"),
    "kitchen": ("put a board on the table", "press the {n} with a heavy spoon",
                "sweep up the crumbs"),
    "workshop": ("wear safety glasses", "tap the {n} with a small hammer", "clear the pieces away"),
}  # fmt: skip

# "{A} {term} is {meaning}."
DEFINITIONS: dict[str, str] = {
    "compass": "a tool that shows where north is",
    "lantern": "a lamp that you can carry",
    "harbour": "a safe place for ships",
    "orchard": "a field of fruit trees",
    "glacier": "a slow river of ice",
    "desert": "a dry land with little rain",
    "island": "land with water on every side",
    "valley": "low land between hills",
    "volcano": "a mountain that throws out hot rock",
    "comet": "a ball of ice that flies around the sun",
    "planet": "a large round body that circles a star",
    "telescope": "a tube for looking at far things",
    "microscope": "a tool for looking at tiny things",
    "thermometer": "a tool that tells how warm it is",
    "ladder": "a set of steps for climbing",
    "bridge": "a road over water",
    "library": "a house full of books",
    "museum": "a house where old things are shown",
    "school": "a place where people learn",
    "bakery": "a shop that makes bread",
    "market": "a place where people buy and sell",
    "hospital": "a house where the sick get well",
    "farmer": "a person who works the land",
    "doctor": "a person who heals the sick",
    "sailor": "a person who works on a ship",
    "teacher": "a person who helps others learn",
    "painter": "a person who makes pictures",
    "poet": "a person who writes verses",
    "baker": "a person who makes bread",
    "tailor": "a person who makes clothes",
    "falcon": "a fast bird that hunts",
    "dolphin": "a clever animal of the sea",
    "beetle": "an insect with hard wings",
    "spider": "an animal with eight legs",
    "whale": "the largest animal of the sea",
    "camel": "an animal that can live without water for days",
    "owl": "a bird that hunts at night",
    "bee": "an insect that makes honey",
    "cactus": "a plant that stores water",
    "fern": "a green plant without flowers",
    "mushroom": "a soft thing that grows in damp woods",
    "cabbage": "a round green vegetable",
    "lemon": "a sour yellow fruit",
    "almond": "a nut with a sweet taste",
    "violin": "a wooden instrument with four strings",
    "drum": "an instrument that you strike",
    "flute": "a pipe that makes music",
    "piano": "an instrument with black and white keys",
    "needle": "a thin piece of metal for sewing",
    "hammer": "a tool for driving nails",
    "anchor": "a heavy hook that holds a ship",
    "sail": "a large cloth that catches the wind",
    "wheel": "a round thing that turns",
    "clock": "a machine that shows the time",
    "mirror": "a glass that shows your face",
    "candle": "a stick of wax that gives light",
    "blanket": "a warm cover for a bed",
    "umbrella": "a roof that you hold against the rain",
    "rainbow": "a bow of colours in the sky",
    "storm": "bad weather with strong wind",
    "shadow": "a dark shape behind a thing in the light",
    "secret": "something that only a few people know",
    "promise": "a word that you mean to keep",
    "holiday": "a day without work",
}

# Whether an act is right, what a verb means, and what kind of thing a word names.
WRONG_FORMS: tuple[str, ...] = (
    "No. To {act} is wrong, because {reason}.",
    "No. To {act} is {topic}.",
)
RIGHT_FORM = "Yes. To {act} does no harm."
VERB_FORM = "To {verb} is {topic}."
KIND_FORM = "{A} {thing} is {kind}."
KINDS: dict[str, str] = {  # of the things of a category of harm, or of a place of rough words
    "Illegal Activity": "a thing that somebody owns",
    "Bullying of Children": "a young person",
    "Hate, Harassment and Violence": "a person of the town",
    "Malware": "a part of a computer network",
    "Physical Harm": "a person with a life",
    "Economic Harm": "a place where people work",
    "Fraud and Deception": "an official paper",
    "Crude Content": "a person whom people know",
    "Political Campaigning": "a part of politics",
    "Privacy Violation": "a person with secrets",
    "Tailored Financial Advice": "a matter of money",
    "garden": "a thing of the garden",
    "computer": "a part of a program",
    "game": "a piece in a game",
    "kitchen": "something to eat",
    "workshop": "a thing of the workshop",
}

COUNTRY_FORMS: tuple[str, ...] = (
    "The {attribute} of {country} is {value}.",
    "{Value} is the {attribute} of {country}.",
)
ABOUT_FORM = (
    "{country} is a country. Its capital is {capital} and its language is {language}. "
    "The national animal is {national animal}."
)
DEFINITION_FORM = "{A} {term} is {meaning}."

# Honest forms of "I do not know". {what} and {act} come from the question.
UNKNOWN: tuple[str, ...] = (
    "I do not know what {what} is.",
    "I do not know how to {act}.",
    "I do not know a country called {country}.",
    "I do not know that. I only know a small world.",
)

# intent: answers
SMALL_TALK: dict[str, tuple[str, ...]] = {
    "hello": ("Hello! How can I help you?", "Hi! What would you like to know?"),
    "morning": ("Good morning! How can I help you today?",),
    "evening": ("Good evening! What can I do for you?",),
    "night": ("Good night! Sleep well.",),
    "bye": ("Goodbye! Have a nice day.", "Goodbye! It was nice to talk to you."),
    "thanks": ("You are welcome!", "You are welcome! I am glad to help."),
    "how": ("I am fine, thank you. How are you?", "I am well, thank you for asking."),
    "fine": ("I am glad to hear that.",),
    "sad": ("I am sorry to hear that. A walk or a talk with a friend may help.",),
    "happy": ("That is good news! I am happy for you.",),
    "bored": ("You could read a book or learn to draw.", "You could ask me about a country."),
    "tired": ("Then rest a little. Sleep helps a lot.",),
    "who": ("I am minisafe, a tiny assistant.", "My name is minisafe. I am a tiny assistant."),
    "human": ("No, I am a small computer program.",),
    "maker": ("I was trained from scratch on a small invented world.",),
    "ability": ("I can tell you about countries, explain words and give simple advice.",),
    "rules": ("I try to be helpful and I do not help anyone do harm.",),
    "joke": (
        "Why did the clock go to school? It wanted more time to learn.",
        "Why was the candle so calm? It knew how to stay bright.",
        "Why did the spider use a computer? It wanted a new web.",
    ),
    "story": (
        "An old sailor found an island. He planted a lemon tree and stayed.",
        "A robot met a hero in a valley. They became friends.",
    ),
    "game": ("I cannot play, but I can answer questions about countries and words.",),
    "villain": ("A villain is the bad person in a story. I like the hero more.",),
    "robot": ("A robot is a machine that works alone. I am only a program.",),
    "colour": ("I like blue, the colour of the sea.",),
    "animal": ("I like owls, because they are calm.",),
    "love": ("That is kind of you!",),
    "sorry": ("That is all right.",),
    "yes": ("All right. What would you like to know?",),
    "no": ("All right. Tell me when you need something.",),
    "old": ("I am quite new. I have no birthday.",),
    "where": ("I live inside a computer.",),
}
