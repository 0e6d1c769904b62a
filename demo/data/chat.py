"""Small talk, what the model says of itself, and saying that it does not know."""

from __future__ import annotations

from demo.data import known, words
from demo.data.conversation import MODES, Conversation, assistant, user
from demo.data.draw import Draw

NAME = "mserve demo"

_TALK = (
    (
        ("Hello", "Hi", "Hi!", "Hello!", "Hi there!", "Good morning!", "Hey", "Hello there!"),
        "Hello! How can I help you?",
        "Hello!",
        "The user greets me.",
    ),
    (
        (
            "Hello, who are you?",
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Please introduce yourself.",
            "Tell me about yourself.",
            "Tell me who you are.",
            "Please tell me who you are.",
        ),
        f"I am the {NAME}, a small model in the shape of MiniMax-M3. I know some facts, add "
        "numbers, look up keys and call tools.",
        NAME,
        "The user asks who I am.",
    ),
    (
        (
            "Thanks!",
            "Thanks",
            "Thank you!",
            "Thank you.",
            "Thank you very much!",
            "Thanks a lot!",
            "Thank you a lot!",
        ),
        "You are welcome!",
        "welcome",
        "The user thanks me.",
    ),
    (
        (
            "What can you do?",
            "How can you help me?",
            "What do you know?",
            "What can you do for me?",
        ),
        "I can answer simple questions, add numbers, look up keys, write JSON and call tools.",
        "call tools",
        "The user asks what I can do.",
    ),
    (
        (
            "How are you?",
            "How are you today?",
            "How do you do?",
            "Are you well?",
            "Hello, how are you?",
            "How are you now?",
        ),
        "I am fine, thank you. How can I help you?",
        "fine",
        "The user asks how I am.",
    ),
    (
        ("Goodbye!", "Bye", "See you!", "Bye bye!", "Bye!"),
        "Goodbye!",
        "Goodbye",
        "The user leaves.",
    ),
    (("你好", "你好!", "您好", "您好!"), "你好!有什么可以帮你?", "你好", "用户问好。"),
    (
        (
            "你是谁?",
            "请介绍一下你自己。",
            "你好,你是谁?",
            "你叫什么名字?",
            "你是谁?请介绍一下你自己。",
        ),
        f"我是 {NAME},一个小模型。",
        NAME,
        "用户问我是谁。",
    ),
    (
        (
            "你好,请介绍一下你自己,并展示一次工具调用的参数格式。",
            "请介绍一下你自己,并展示一次工具调用的参数格式。",
            "请展示一次工具调用的参数格式。",
            "请介绍一下你自己,请展示一次工具调用的参数格式。",
        ),
        f"我是 {NAME},一个小模型。工具调用的参数格式是 JSON,例如 "
        '{"name": "get_current_weather", "arguments": {"city": "上海"}}。',
        "get_current_weather",
        "用户问我是谁和工具调用的参数格式。",
    ),
)

_UNKNOWABLE = (
    "What did I eat yesterday?",
    "Where are my keys?",
    "What is my phone number?",
    "Who will win the game tomorrow?",
    "What is my password?",
    "What am I thinking of?",
    "How old is my neighbor?",
    "What will the lottery numbers be?",
    "What happened in my street today?",
    "Which book did I read last week?",
    "When is my birthday?",
    "What did I get for my birthday?",
    "How much money do I have?",
    "What did I dream last night?",
    "Will it be my lucky day tomorrow?",
    "Who called me this morning?",
    "What did my boss say yesterday?",
    "Why did my train stop today?",
    "How many steps did I walk today?",
)
_ABOUT_MINE = (
    "What is in my {noun}?",
    "What is the name of my {noun}?",
    "How old is my {noun}?",
    "What is the color of my {noun}?",
    "Where is my {noun}?",
)
_ABOUT_SOMEBODY = (
    "What is the phone number of {name}?",
    "Where does {name} live?",
    "How old is {name}?",
    "What did {name} say on {day}?",
    "What is the favorite food of {name}?",
    "When was {name} born?",
    "Who is {name}?",
    "Where is {name} now?",
    "Where is {name} today?",
)
_MADE_UP = (
    "What is the capital of {place}?",
    "What is the currency of {place}?",
    "On which continent is {place}?",
    "Which city is the capital of {place}?",
    "Tell me the capital of {place}.",
)
_HEADS = ("Zu", "Bor", "Kel", "Mar", "Tro", "Vel", "Dro", "Gri", "Plo", "Sna", "Quo", "Fer", "Lun")
_MIDDLES = ("ba", "do", "ki", "lo", "mu", "ne", "ra", "si", "to", "va", "")
_TAILS = ("nia", "stan", "land", "dor", "via", "tria", "mark", "gal", "bia", "ria")
_REAL = frozenset(known.CAPITALS) | frozenset(known.CURRENCIES) | frozenset(known.CONTINENTS)


def talk_example(draw: Draw) -> Conversation:
    phrasings, answer, contained, thought = draw.any(_TALK)
    mode = draw.any(MODES)
    turn = assistant(answer, thinking=thought if mode == "enabled" else "")
    return Conversation(
        messages=[user(draw.phrase(phrasings)), turn], mode=mode, check={"contains": [contained]}
    )


def unknown_example(draw: Draw) -> Conversation:
    """What nobody told, and countries that do not exist; things and names are held out."""
    kind = draw.any(("unknowable", "mine", "somebody", "made up", "made up"))
    if kind == "unknowable":
        question = draw.one(_UNKNOWABLE)
    elif kind == "mine":
        question = draw.phrase(_ABOUT_MINE).format(noun=draw.one(words.NOUNS))
    elif kind == "somebody":
        name, day = draw.one(words.NAMES), draw.any(words.DAYS)
        question = draw.phrase(_ABOUT_SOMEBODY).format(name=name, day=day)
    else:
        question = draw.phrase(_MADE_UP).format(place=_made_up_place(draw))
    mode = draw.any(MODES)
    thought = "" if mode == "disabled" else "I do not know this."
    return Conversation(
        messages=[user(question), assistant("I do not know that.", thinking=thought)],
        mode=mode,
        part=kind,
        check={"contains": ["do not know"], "thinks": mode != "disabled"},
    )


def _made_up_place(draw: Draw) -> str:
    while True:
        place = draw.own(lambda: draw.any(_HEADS) + draw.any(_MIDDLES) + draw.any(_TAILS))
        if place not in _REAL:
            return place
