"""The dialogues' fields about people: hobbies, towns and worries; then all six fields."""

from __future__ import annotations

from jaxspec.data.embedded.chat_topics import ANIMALS, DISHES, PLANTS, Aspect, Field, rows

HOBBIES = Field(
    it="it",
    wish="I want to try {topic}",
    aspects={
        "gear": Aspect(
            "Equipment",
            ("what I need for it", "which equipment I need"),
            ("All you need is {fact}.", "To start {topic}, get {fact}."),
        ),
        "begin": Aspect(
            "Start",
            ("how to start", "what a good first step is"),
            ("Start by {fact}.", "A good first step is {fact}."),
            {
                "joining a small group": "Others will show you the basics.",
                "watching a short video": "It shows the right movements.",
                "taking a lesson": "A teacher sees your mistakes.",
                "trying it at home": "Nobody is watching you there.",
            },
        ),
        "often": Aspect(
            "Practice",
            ("how often to practice", "how much time it takes"),
            ("Practice {fact}.", "Plan to do it {fact}."),
            {
                "every day": "Ten minutes are enough.",
                "twice a week": "Your body needs days of rest.",
                "on weekends": "Then you are not in a hurry.",
            },
        ),
        "gain": Aspect(
            "Benefit",
            ("why it is good for me", "what the benefit is"),
            ("It {fact}.", "The best thing about {topic}: it {fact}."),
            {
                "makes you stronger": "You feel the change after a month.",
                "calms the mind": "Many people sleep better.",
                "trains the memory": "That helps at work too.",
                "brings you outside": "Fresh air is good for everybody.",
            },
        ),
        "hard": Aspect(
            "Hard part",
            ("what is hard about it", "which part is difficult"),
            ("The hard part is {fact}.", "Most beginners struggle with {fact}."),
            {
                "the first weeks": "Do not give up too early.",
                "getting up early": "Go to bed an hour sooner.",
                "staying patient": "Small goals will help.",
                "finding the time": "Put it into your calendar.",
            },
        ),
    },
    topics=rows(
        """
        running: a pair of good shoes | joining a small group | twice a week |
            makes you stronger | the first weeks
        chess: a board and a clock | watching a short video | every day | trains the memory |
            staying patient
        painting: brushes, colors and paper | trying it at home | on weekends | calms the mind |
            staying patient
        swimming: a swimsuit and a towel | taking a lesson | twice a week | makes you stronger |
            getting up early
        the guitar: a simple guitar | taking a lesson | every day | trains the memory |
            the first weeks
        hiking: boots and a map | joining a small group | on weekends | brings you outside |
            getting up early
        knitting: wool and two needles | watching a short video | every day | calms the mind |
            the first weeks
        fishing: a rod and a bucket | joining a small group | on weekends | brings you outside |
            getting up early
        yoga: a soft mat | watching a short video | every day | calms the mind | finding the time
        dancing: light shoes and music | taking a lesson | twice a week | makes you stronger |
            finding the time
        photography: a small camera | trying it at home | on weekends | brings you outside |
            staying patient
        singing: a quiet room | joining a small group | twice a week | trains the memory |
            finding the time
        """
    ),
    closings=(
        "Good luck and have fun.",
        "Soon it will be a habit.",
        "Every expert was once a beginner.",
    ),
)

TOWNS = Field(
    it="it",
    wish="I am going to visit {topic}",
    aspects={
        "sight": Aspect(
            "Sight",
            ("what to see there", "which place I must see"),
            ("In {topic} you should see {fact}.", "Do not miss {fact}."),
            {
                "the old castle": "From its tower you see the whole valley.",
                "the harbor": "The boats come back in the evening.",
                "the glass museum": "It is small but full of color.",
                "the market square": "It is busy on every morning.",
            },
        ),
        "eat": Aspect(
            "Food",
            ("what to eat there", "which food is typical"),
            ("Try {fact} there.", "The town is known for {fact}."),
            {
                "fish soup": "Every family has its own recipe.",
                "cheese bread": "It comes hot from the oven.",
                "honey cake": "One piece is enough for two.",
                "pepper stew": "Ask for a mild one.",
            },
        ),
        "season": Aspect(
            "Season",
            ("when to go", "which season is best"),
            ("The best season is {fact}.", "Go there in {fact}."),
            {
                "spring": "The hills are full of flowers.",
                "summer": "The evenings are long and warm.",
                "autumn": "The crowds are gone by then.",
                "winter": "The snow makes it quiet.",
            },
        ),
        "travel": Aspect(
            "Getting there",
            ("how to get there", "how I should travel"),
            ("Take {fact}.", "The easiest way to {topic} is {fact}."),
            {
                "the night train": "You arrive before breakfast.",
                "the bus": "It leaves every hour.",
                "the ferry": "The trip on the water is a pleasure.",
            },
        ),
        "gift": Aspect(
            "Gift",
            ("what I can bring home", "what a good gift is"),
            ("Bring home {fact}.", "A good gift from {topic} is {fact}."),
            {
                "a wool hat": "They are made by hand.",
                "a jar of honey": "It comes from the hills.",
                "a blue plate": "The color is found nowhere else.",
                "a wooden toy": "Children love them.",
            },
        ),
    },
    topics=rows(
        """
        Arlow: the old castle | cheese bread | autumn | the bus | a wool hat
        Benmoor: the harbor | fish soup | summer | the ferry | a blue plate
        Corvale: the glass museum | honey cake | spring | the night train | a jar of honey
        Dunfell: the old castle | pepper stew | winter | the night train | a wool hat
        Elmstead: the market square | cheese bread | spring | the bus | a wooden toy
        Farrow: the market square | honey cake | autumn | the night train | a jar of honey
        Gullport: the harbor | fish soup | summer | the bus | a wooden toy
        Hollin: the glass museum | pepper stew | winter | the bus | a blue plate
        Ister: the harbor | pepper stew | spring | the ferry | a jar of honey
        Kelby: the old castle | honey cake | summer | the ferry | a wooden toy
        Lormont: the glass museum | fish soup | autumn | the ferry | a blue plate
        Marden: the market square | cheese bread | winter | the night train | a wool hat
        """
    ),
    closings=(
        "Have a good trip.",
        "Two days are enough for a first visit.",
        "Book a room early.",
    ),
)

WORRIES = Field(
    it="it",
    wish="I need help with {topic}",
    aspects={
        "cause": Aspect(
            "Cause",
            ("where it comes from", "what the cause is"),
            ("The usual cause is {fact}.", "Most often {topic} comes from {fact}."),
            {
                "too much work": "Nobody can be busy all day.",
                "a lack of sleep": "A tired head makes mistakes.",
                "too many screens": "They keep the mind awake.",
                "no clear plan": "Then everything seems urgent.",
            },
        ),
        "today": Aspect(
            "Today",
            ("what I can do today", "what helps at once"),
            ("Today you can {fact}.", "What helps at once: {fact}."),
            {
                "take a short walk": "Ten minutes in the fresh air are enough.",
                "write a list": "Then your head is free again.",
                "turn off the phone": "One quiet hour works wonders.",
                "talk to a friend": "Saying it aloud makes it smaller.",
            },
        ),
        "habit": Aspect(
            "Habit",
            ("which habit helps", "what helps in the long run"),
            ("In the long run, {fact}.", "A good habit: {fact}."),
            {
                "go to bed at the same time": "The body likes a rhythm.",
                "plan the next day in the evening": "You will start with a clear head.",
                "move your body every morning": "It wakes you up.",
                "keep one day a week free": "Rest is part of the work.",
            },
        ),
        "avoid": Aspect(
            "Avoid",
            ("what I should avoid", "what makes it worse"),
            ("Try to avoid {fact}.", "What makes it worse is {fact}."),
            {
                "coffee in the evening": "It works for many hours.",
                "doing many things at once": "Each of them takes longer.",
                "long evenings on the phone": "You lose time without noticing it.",
                "heavy meals": "They make you slow.",
            },
        ),
        "help": Aspect(
            "Help",
            ("when to ask for help", "who can help me"),
            ("If it lasts for weeks, {fact}.", "If nothing changes, {fact}."),
            {
                "see a doctor": "It is better to be sure.",
                "ask your boss for a talk": "Bring two clear wishes.",
                "ask your family for support": "They may not know how you feel.",
            },
        ),
    },
    topics=rows(
        """
        poor sleep: too many screens | turn off the phone | go to bed at the same time |
            coffee in the evening | see a doctor
        stress at work: too much work | take a short walk | keep one day a week free |
            doing many things at once | ask your boss for a talk
        a messy desk: no clear plan | write a list | plan the next day in the evening |
            doing many things at once | ask your family for support
        bad mornings: a lack of sleep | take a short walk | go to bed at the same time |
            long evenings on the phone | see a doctor
        low energy: a lack of sleep | take a short walk | move your body every morning |
            heavy meals | see a doctor
        missed deadlines: no clear plan | write a list | plan the next day in the evening |
            doing many things at once | ask your boss for a talk
        tired eyes: too many screens | turn off the phone | keep one day a week free |
            long evenings on the phone | see a doctor
        a bad mood: a lack of sleep | talk to a friend | move your body every morning |
            coffee in the evening | ask your family for support
        no free time: too much work | write a list | keep one day a week free |
            long evenings on the phone | ask your family for support
        worry before exams: no clear plan | talk to a friend | plan the next day in the evening |
            coffee in the evening | ask your family for support
        back pain: too much work | take a short walk | move your body every morning |
            heavy meals | see a doctor
        poor focus: too many screens | turn off the phone | move your body every morning |
            doing many things at once | ask your boss for a talk
        """
    ),
    closings=(
        "Small steps are enough.",
        "Be kind to yourself.",
        "Give it two weeks and then look again.",
    ),
)

FIELDS = {
    "plants": PLANTS,
    "dishes": DISHES,
    "animals": ANIMALS,
    "hobbies": HOBBIES,
    "towns": TOWNS,
    "worries": WORRIES,
}
