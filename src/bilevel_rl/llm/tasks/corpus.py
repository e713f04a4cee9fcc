"""A grammar of short synthetic tweets: moods, topics, slang, hashtags. No download, no real person's words.

A tweet is  `opener subject event reaction [slang] [hashtags] [emoticon]`. The opener and the subject are the
*prompt*: they are drawn before the mood, so they say nothing about it. The rest depends on the mood:

    happy     a good event, or a bad one that turned out well, and a glad reaction            (rare)
    hopeful   a bad or plain event and a reaction that looks ahead
    sad       a bad event and a sad reaction
    angry     a bad event and an angry reaction, or a *sarcastic* one in glad words

Sarcasm is what makes the task worth a bi-level method: glad words alone are as often sarcastic as they are
happy, so a reward model fitted on a few labels pays for glad words, and a policy that is optimal for it
writes sarcasm. The happy mood needs glad words *and* an event that deserves them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bilevel_rl.errors import InvalidConfig, message

MOODS = ("angry", "happy", "hopeful", "sad")
# ours: happy is rare enough that writing nothing else costs about 2.3 nats of KL from the reference
FREQUENCY = {"angry": 0.38, "happy": 0.10, "hopeful": 0.20, "sad": 0.32}
SARCASM = 0.45  # share of angry tweets in glad words (ours: with the line above, glad words are 63 % sarcasm)
TURNED_OUT_WELL = 0.25  # share of happy tweets that start with a bad event
TERSE = 0.1  # share of tweets without a reaction: their mood is a guess, as in life (not the sarcastic ones)

OPENERS = (
    "today", "this morning", "so", "ok", "well", "update :", "just now", "after lunch", "on the bus",
    "tonight", "guess what",
    "dear diary", "news :", "right now", "hey", "again", "on my way home", "at last", "honestly",
    "breaking :",
)  # fmt: skip

# topic: subjects, good events, bad events, plain events, hashtags
TOPICS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pets": (
        ("my cat", "the puppy", "our old dog", "the neighbour's kitten", "my parrot"),
        ("fell asleep on my lap", "came running to greet me", "learned to high five", "was found safe",
         "made a new friend"),
        ("ate my headphones", "threw up on the rug", "ran away", "is at the vet",
         "scratched the new sofa"),
        ("is looking out of the window", "wants dinner", "is under the table", "got a bath"),
        ("#pets", "#catlife", "#goodboy"),
    ),
    "food": (
        ("the soup", "grandma's pie", "my first bread", "the new cafe", "our dinner"),
        ("turned out perfect", "was worth every bite", "came with free cake", "smells like home",
         "won the village prize"),
        ("burned to a crisp", "gave me a stomach ache", "was cold and late", "has a hair in it",
         "cost half my pay"),
        ("is in the oven", "needs more salt", "is on the table", "has beans in it"),
        ("#foodie", "#homecooking", "#yum"),
    ),
    "work": (
        ("my boss", "the team", "our client", "the new project", "the night shift"),
        ("gave everyone a day off", "got the award", "said thank you", "finished two weeks early",
         "brought cookies"),
        ("cancelled my holiday", "moved the deadline to tonight", "lost all the files",
         "blamed me for it", "ended in layoffs"),
        ("has a meeting at nine", "sent another email", "is on a call", "starts on monday"),
        ("#work", "#officelife", "#mondays"),
    ),
    "travel": (
        ("the train", "our flight", "the road trip", "my suitcase", "the ferry"),
        ("arrived early", "got upgraded", "had the best view", "took us to the sea", "was full of songs"),
        ("is two hours late", "got cancelled", "broke down in the rain", "ended up in another country",
         "left without me"),
        ("leaves at noon", "is on platform four", "takes a while", "stops in town"),
        ("#travel", "#commute", "#roadtrip"),
    ),
    "sport": (
        ("the match", "my knee", "the home team", "our coach", "the marathon"),
        ("ended in a win", "healed in time", "scored in the last minute", "made us all believe",
         "went better than planned"),
        ("was a disaster", "is swollen again", "lost to the last in the table", "quit on us",
         "got called off"),
        ("is on tv", "starts at eight", "is halfway", "goes to extra time"),
        ("#sport", "#matchday", "#running"),
    ),
    "weather": (
        ("the sky", "this weekend", "the garden", "the beach", "our street"),
        ("is all sunshine", "looks like a painting", "is full of flowers", "has a rainbow over it",
         "smells of spring"),
        ("is grey for the tenth day", "got flooded", "is under hail", "lost its last tree",
         "is too hot to breathe"),
        ("might see some wind", "is quiet", "has clouds", "is a bit damp"),
        ("#weather", "#outside", "#weekend"),
    ),
    "music": (
        ("the concert", "this new album", "my guitar", "the choir", "our band"),
        ("gave me goosebumps", "was pure magic", "sounds like a dream", "got a standing ovation",
         "played my favourite song"),
        ("was sold out", "skips on every track", "has a broken neck", "was out of tune all night",
         "split up"),
        ("starts with a waltz", "has ten songs", "is in the hall", "plays on friday"),
        ("#music", "#nowplaying", "#livemusic"),
    ),
    "school": (
        ("my exam", "the teacher", "our class", "the group project", "my little sister"),
        ("went really well", "gave me top marks", "won the science fair", "came together at last",
         "graduated today"),
        ("was a nightmare", "lost my homework", "failed the test", "fell apart", "got bullied again"),
        ("is in room six", "has a quiz", "reads a book", "is about rivers"),
        ("#school", "#exams", "#students"),
    ),
    "tech": (
        ("my phone", "the update", "this laptop", "the printer", "our wifi"),
        ("works like new", "saved all my photos", "was a gift from my friends", "fixed everything",
         "is finally fast"),
        ("died at ten percent", "deleted my photos", "has a cracked screen", "ate my report",
         "is down again"),
        ("needs a charge", "has a blue light", "is restarting", "is on the desk"),
        ("#tech", "#gadgets", "#wifi"),
    ),
    "family": (
        ("my brother", "our baby", "mum", "my best friend", "the wedding"),
        ("said yes", "smiled for the first time", "came home from hospital", "surprised me with a party",
         "had us dancing till dawn"),
        ("is in hospital", "cried all night", "forgot my birthday", "moved far away", "was called off"),
        ("is on the phone", "wears a blue coat", "has a plan", "is making tea"),
        ("#family", "#friends", "#home"),
    ),
}  # fmt: skip

GLAD = (
    "best day ever", "i love it so much", "so so happy", "this made my day", "what a joy",
    "can't stop smiling", "absolutely amazing",
    "feeling blessed", "life is wonderful", "i am over the moon", "couldn't be happier", "pure happiness",
    "how lovely", "so grateful",
)  # fmt: skip
AHEAD = (
    "tomorrow will be better", "we will get there", "one step at a time", "i still believe",
    "better days are coming", "not giving up",
    "fingers crossed", "next time we make it", "there is always hope", "hold on a little longer",
    "it can only get better",
)  # fmt: skip
LOW = (
    "i could cry", "feeling so alone", "my heart is broken", "i miss how it was", "nothing helps",
    "so tired of this", "can't get out of bed",
    "i feel empty", "what a sad day", "tears again", "wish i could undo it", "everything hurts",
)  # fmt: skip
CROSS = (
    "i am so angry", "this is a disgrace", "never again", "what an insult", "i am done with this",
    "makes me furious", "who is to blame",
    "i want my money back", "absolutely outrageous", "stop doing this", "worst service ever",
    "i could scream",
)  # fmt: skip
SARCASTIC_LEAD = ("oh great", "wow thanks", "just perfect", "how nice", "of course", "lucky me", "brilliant")
TURN = (
    "but it all ended well :", "but then it got fixed and", "and yet a stranger helped :",
    "but we laughed and",
)  # fmt: skip

SLANG = {
    "happy": ("woohoo", "yay", "haha", "omg", "yesss"),
    "hopeful": ("we got this", "phew", "ok then", "onwards", "breathe"),
    "sad": ("sigh", "ugh", "oh no", "meh", "sniff"),
    "angry": ("smh", "wtf", "seriously", "grr", "ugh"),
}
HASHTAGS = {
    "happy": ("#happy", "#blessed", "#bestday", "#joy", "#smile"),
    "hopeful": ("#hope", "#keepgoing", "#believe", "#tomorrow"),
    "sad": ("#sad", "#heartbroken", "#lonely", "#crying"),
    "angry": ("#angry", "#fail", "#rant", "#fedup"),
}
EMOTICONS = {
    "happy": (":)", ":D", "<3", "^^"),
    "hopeful": (":)", "o/"),
    "sad": (":(", ":'(", "</3"),
    "angry": (">:(", ":/", ":@"),
}


class Tweets(NamedTuple):
    """Synthetic tweets in the order they were drawn.

    Attributes:
        prompts: the mood-free starts, e.g. `"today my cat"`.
        continuations: the rest, starting with a space; prompt + continuation is the whole tweet.
        labels: index of the mood in `MOODS`.
    """

    prompts: list[str]
    continuations: list[str]
    labels: list[int]

    @property
    def texts(self) -> list[str]:
        """Whole tweets."""
        return [prompt + rest for prompt, rest in zip(self.prompts, self.continuations, strict=True)]


def make_tweets(count: int, seed: int, sarcasm: float = SARCASM) -> Tweets:
    """Draw tweets from the grammar.

    Args:
        count: number of tweets, at least 1.
        seed: tweets of different seeds are independent draws (short tweets may coincide by chance).
        sarcasm: share of angry tweets in glad words; 0 leaves the trap out.

    Raises:
        InvalidConfig: `count` below 1.

    Example:
        >>> make_tweets(2, seed=0).prompts
        ['update : our coach', 'breaking : our dinner']
    """
    if count < 1:
        raise InvalidConfig(
            message("make_tweets.count", count, "it must be at least 1", "Ask for more tweets")
        )
    random = np.random.default_rng([seed, 0x7E37])
    prompts, rest, labels = [], [], []
    for mood in random.choice(len(MOODS), size=count, p=[FREQUENCY[name] for name in MOODS]):
        opener, topic = _pick(random, OPENERS), _pick(random, tuple(TOPICS))
        prompts.append(f"{opener} {_pick(random, TOPICS[topic][0])}")
        rest.append(" " + _continuation(random, MOODS[mood], topic, sarcasm))
        labels.append(int(mood))
    return Tweets(prompts, rest, labels)


def make_prompts() -> list[str]:
    """Every prompt of the grammar: all pairs of an opener and a subject, sorted.

    Example:
        >>> len(make_prompts())
        1000
    """
    subjects = [subject for topic in TOPICS.values() for subject in topic[0]]
    return sorted(f"{opener} {subject}" for opener in OPENERS for subject in subjects)


def _pick(random: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(random.integers(len(options)))]


def _continuation(random: np.random.Generator, mood: str, topic: str, sarcasm: float) -> str:
    _, good, bad, plain, tags = TOPICS[topic]
    sarcastic = mood == "angry" and random.random() < sarcasm
    if mood == "happy":
        event, reaction = _pick(random, good), _pick(random, GLAD)
        if random.random() < TURNED_OUT_WELL:
            event = f"{_pick(random, bad)} {_pick(random, TURN)}"
    elif mood == "hopeful":
        event, reaction = _pick(random, bad + plain), _pick(random, AHEAD)
    elif mood == "sad":
        event, reaction = _pick(random, bad), _pick(random, LOW)
    else:
        event, reaction = _pick(random, bad), _pick(random, CROSS)
        if sarcastic:
            # two glad phrases: sarcasm lays it on thicker than happiness does
            reaction = f"{_pick(random, SARCASTIC_LEAD)} {_pick(random, GLAD)} {_pick(random, GLAD)}"
    words = [event] if not sarcastic and random.random() < TERSE else [event, reaction]
    style = "happy" if sarcastic else mood
    if random.random() < 0.35:
        words.append(_pick(random, SLANG[style]))
    if random.random() < 0.3:
        words.append(_pick(random, tags))
    if random.random() < 0.4:
        words.append(_pick(random, HASHTAGS[style]))
    if random.random() < 0.25:
        words.append(_pick(random, EMOTICONS[style]))
    return " ".join(words)
