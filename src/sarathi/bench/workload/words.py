"""English of no particular meaning: words by kind, and sentences made of them."""

from __future__ import annotations

import random

_WORDS = {
    kind: tuple(words.split())
    for kind, words in {
        "determiner": "the this that every another each our their his her my your the the the",
        "adjective": """
            able active ancient big black blue bold brave brief bright brown calm cheap clean clear
            clever cold common complete cool curious dark deep different distant dry early easy
            empty exact fair famous fast final fine first flat formal free fresh full gentle giant
            golden good grand great green happy hard heavy hidden high honest hot huge important
            large last late light little local lonely long loose loud low lucky main modern narrow
            natural new nice noisy normal odd old open orange ordinary pale patient plain pleasant
            polite poor popular private proud public pure quick quiet rare ready real recent red
            rich right rough round royal rural sad safe serious sharp short silent silver simple
            single slow small smart smooth soft solid special square steady strange strict strong
            sudden sweet tall thick thin tiny tired true unusual useful usual warm weak wet white
            whole wide wild wise wooden yellow young
        """,
        "noun": """
            actor airport animal answer apple army artist author baby bank basket beach bed bell
            bird boat body book border bottle box boy branch bridge brother building bus cake camera
            captain car card castle cat chair chapter child church circle city class clock cloud
            coach coat coffee college color company computer corner country cousin cup customer
            daughter desert desk detail dinner doctor dog door dress driver editor engine engineer
            evening factory family farm farmer father field finger fire fish floor flower forest
            friend garden gate girl glass guard guest guitar hall hand harbor hat hill history
            holiday horse hospital hotel hour house island journey judge key king kitchen lake lamp
            lawyer leader letter library lion list machine manager map market member message metal
            mirror moment morning mother mountain museum neighbor newspaper night north number nurse
            ocean office officer owner painter paper parent park partner party path patient pattern
            phone picture pilot place plan plant plate player poem poet police port president price
            prince problem professor project queen question radio rain report reporter restaurant
            river road rock roof room sailor scene school scientist sea season secret sentence ship
            shop shoulder signal singer sister sky soldier son song south spring stage star station
            stone storm story stranger street student summer table teacher team temple theory ticket
            tower town track train traveler tree truck uncle valley village visitor voice wall
            watch water weather wheel wife wind window winter woman word worker writer yard
        """,
        "verb": """
            accepted admired avoided bought broke brought built called carried caught changed
            checked chose cleaned closed collected copied counted covered crossed defended
            described designed discovered drew drove entered examined explained explored feared
            filled finished fixed followed forgot found guarded heard helped hid ignored improved
            inspected joined kept knew learned left liked lost loved made measured met missed moved
            needed noticed opened ordered owned packed painted passed photographed placed planned
            prepared protected pulled pushed raised reached read remembered repaired replaced
            reported requested rescued returned saved saw sent shared showed sold solved stopped
            studied supported surprised taught tested thanked took touched trusted turned
            understood used visited wanted warned washed watched welcomed won wrote
        """,
        "preposition": """
            above across after against along among around at before behind below beside between
            beyond by for from in inside into near on outside over past through to toward under
            until with without
        """,
        "adverb": """
            again alone already always away badly carefully clearly early easily finally gently
            gladly here later often once outside perhaps quickly quietly rarely recently slowly
            somehow sometimes soon suddenly there today together tomorrow twice usually yesterday
        """,
        "joiner": "and but because while before although until so when after",
        "plural": "people children friends students workers visitors neighbors doctors farmers",
        "state": "was seemed became looked remained felt stayed",
        "quantity": "two three four five six seven eight nine ten many several few most some",
    }.items()
}

_PATTERNS = tuple(
    pattern.split()
    for pattern in (
        "determiner adjective noun verb determiner noun preposition determiner adjective noun .",
        "determiner noun verb determiner noun , joiner determiner noun state adjective .",
        "quantity plural verb determiner adjective noun preposition determiner noun adverb .",
        "adverb , determiner noun preposition determiner noun state adjective and adjective .",
        "determiner noun state adjective , joiner quantity adjective plural verb determiner noun .",
        "determiner adjective noun adverb verb determiner noun preposition determiner noun .",
        "preposition determiner noun , quantity plural adverb verb determiner adjective noun .",
        "determiner noun of determiner noun verb quantity plural joiner determiner noun verb it .",
        "who verb determiner adjective noun preposition determiner noun ?",
        "determiner noun that verb determiner adjective noun state adverb adjective .",
    )
)

_CAPITALS = ("determiner", "adverb", "preposition", "quantity")
MARKS = (".", ",", "?", ":")
OPENERS = tuple(word.capitalize() for word in _WORDS["adjective"])  # how a text may begin
FILLERS = tuple(f" {word}" for word in _WORDS["adverb"])  # may follow any word
# All that sentences and openings are made of after their first word, with the space before it.
PIECES = tuple(
    dict.fromkeys(
        [f" {word}" for words in _WORDS.values() for word in words]
        + [f" {word.capitalize()}" for kind in _CAPITALS for word in _WORDS[kind]]
        + [" of", " it", " that", " Who"]
    )
)


def opening(draw: random.Random) -> list[str]:
    """The first words of a text: four drawn at random, so that hardly two begin alike."""
    adjective, noun = _WORDS["adjective"], _WORDS["noun"]
    return [
        draw.choice(OPENERS),
        f" {draw.choice(noun)}",
        " and",
        f" {draw.choice(adjective)}",
        f" {draw.choice(noun)}",
        ":",
    ]


def sentence(draw: random.Random) -> list[str]:
    """A sentence to follow another, as pieces: words with the space before them, and marks."""
    pieces: list[str] = []
    for kind in draw.choice(_PATTERNS):
        word = draw.choice(_WORDS[kind]) if kind in _WORDS else kind
        if not pieces:
            word = word.capitalize()
        pieces.append(word if word in MARKS else f" {word}")
    return pieces
