"""Abbreviations, acronyms and Roman numerals to words; capitals tell most of them from words."""

from __future__ import annotations

import re

from gpa.text import numerals

# Roman numerals ---------------------------------------------------------------------------------------------

_REIGNED = (
    "henry louis george edward elizabeth charles james william richard john paul pius benedict leo "
    "gregory clement "
    "innocent urban alexander nicholas peter catherine mary anne frederick friedrich wilhelm philip "
    "ferdinand "
    "francis franz joseph leopold otto ivan rudolf maximilian napoleon victor emmanuel umberto alfonso "
    "carlos juan "
    "felipe isabella ramses ramesses thutmose amenhotep ptolemy cleopatra darius xerxes cyrus artaxerxes "
    "suleiman "
    "mehmed murad selim abdul hamid bayezid mustafa akbar augustus constantine theodosius justinian leon "
    "michael "
    "basil constantius valentinian harald harold olaf olav haakon christian gustav gustaf adolf erik eric "
    "oscar "
    "sigismund casimir stephen robert david malcolm kenneth macbeth margaret matilda boniface sixtus "
    "julius adrian "
    "hadrian celestine martin eugene nicholas callixtus honorius alexios manuel albert baldwin godfrey "
    "ludwig karl "
    "haile rama wilhelmina beatrix pedro maria theresa thomas walter loudon howell haakon mohammed hassan "
    "hussein "
    "farouk fuad reza abdullah rainier jean baudouin zog boris simeon carol mihai catherine"
).split()
_TENTH = ("louis", "charles", "pius", "leo", "gregory", "benedict", "john", "innocent", "clement", "alfonso")
_TITLES = (
    "king queen pope emperor empress tsar czar tsarina kaiser prince princess sultan pharaoh saint duke"
).split()
_COUNTED = (
    "war chapter part act scene volume vol book section phase type stage level appendix figure fig table "
    "episode "
    "article title class grade tier group mark lesson unit bowl olympiad schedule exhibit corps "
    "photosystem vatican "
    "apollo division fantasy amendment canto psalm sonata symphony season round step opus number no page "
    "rocky"
).split()
_NUMERAL = r"[IVXLCDM]{1,9}"
_LIST = rf"({_NUMERAL}|[ivxl]{{2,8}})\b"
_AFTER_NOUN = re.compile(
    rf"\b((?i:{'|'.join(_COUNTED)})(?i:s?)) {_LIST}((?:(?: ?[-–,&] ?| and | to | or ){_LIST}){{0,4}})"
)
_AFTER_NAME = re.compile(
    rf"\b((?i:(?:{'|'.join(_TITLES)}) (?:[a-z]{{2,20}} )?))?((?i:"
    rf"{'|'.join(sorted({*_REIGNED}, key=len, reverse=True))})"
    rf"(?: (?!II|VI|IV|XI)[A-Z][a-z]{{1,20}})?|(?<= )[A-Z][a-z]{{1,20}}) {_LIST}(?=('s)?)"
)
_CENTURY = re.compile(
    r"\b([IVX]{1,6}|[ivx]{2,6})(?:th|st|nd|rd|e)?(?= (?i:centur(?:y|ies))\b)|\b([IVX]{2,6})(?:th|st|nd|rd)\b"
)
_AFTER_CAPITAL = re.compile(r"\b([A-Z][A-Za-z]{1,20}) ([IVX]{2,7})\b")
_ALONE = re.compile(
    r"\b(?:I{2,3}|VI{2,3}|XI{2,3}|XI?V|XVI{1,3}|XI?X|XXI{1,3}|XXI?V|ii|iii|viii?|xiii?)\b(?!\.\w)"
)
_ENDS_FIRST = re.compile(r"(?=$|[.,;:!?)]|'s| (?:of|was|ruled|reigned|died|became|and|in|to)\b)")
_ODD = {"XIX", "XX"}


def spell_roman(text: str) -> str:
    """Roman numerals of kings (ordinals), and of wars, chapters and their like (cardinals)."""
    text = _CENTURY.sub(_century, text)
    text = _AFTER_NOUN.sub(_counted, text)
    text = _AFTER_NAME.sub(_named, text)
    text = _AFTER_CAPITAL.sub(lambda m: f"{m[1]} {_cardinal(m[2])}", text)
    return _ALONE.sub(lambda m: _cardinal(m[0]), text)


def _cardinal(letters: str) -> str:
    value = numerals.roman(letters)
    return letters if value is None else numerals.cardinal(value)


def _century(match: re.Match[str]) -> str:
    value = numerals.roman(match[1] or match[2])
    return match[0] if value is None else numerals.ordinal(value)


def _counted(match: re.Match[str]) -> str:
    letters = match[2]
    if letters in ("C", "D", "L", "M", "CD", "DC", "MD", "CM") or (letters == "I" and match[1][0].islower()):
        return match[0]
    rest = re.sub(r"\b[IVXLivxl]+\b", lambda m: _cardinal(m[0]), match[3]) if match[3] else ""
    return f"{match[1]} {_cardinal(letters)}{re.sub(r'(?<= )?[-–] ?', ' to ', rest)}"


def _named(match: re.Match[str]) -> str:
    title, name, letters = match[1], match[2], match[3]
    value = numerals.roman(letters)
    known = name.split()[0].lower() in _REIGNED
    if value is None or value > 40 or not (title or known):
        return match[0]
    if len(letters) == 1:  # I is a pronoun, and V, X, C, D, L, M are initials
        if (
            letters not in "IVX"
            or (letters == "X" and name.lower() not in _TENTH)
            or not (title or _ENDS_FIRST.match(match.string, match.end()))
        ):
            return match[0]
    return f"{title or ''}{name} the {numerals.ordinal(value)}"


# Acronyms ---------------------------------------------------------------------------------------------------

# Not words in any case, and spelt although they have vowels; those without vowels need no list.
_KNOWN = set(
    "gpu cpu api usb url uri ai ui ux ip isp ide sdk aws ios iot ssd hdmi gui cli ceo cfo cto coo ucla "
    "usa uk eu un uae "
    "ussr fbi cia nsa irs epa fda doj dea atf usda faa fcc nba nfl nhl mlb ufc ncaa fifa bbc abc nbc cbs "
    "espn pbs npr "
    "adhd hiv dna rna mri ecg ekg iv icu er ibm amd asap aka eta faq diy vip ngo mba phd bsc msc gdp ipo "
    "iq eq atm "
    "pin usps ups dhl iban iou lgbt lgbtq ufo suv gps utc est pst edt pdt gmt cet ios rsvp html https "
    "oecd imf wto "
    "eula oem gdpr iso ieee acm asr tts llm rtx gtx ram rom tba tbd ira roi kpi sla saas hr qa ocr ecb "
    "eth esa "
    "uv ac dc id cd dvd tv pc pr sql csv aclu naacp afl cio yolo".split()
) - {
    "er",
    "un",
    "id",
    "iv",
    "pin",
    "ups",
    "est",
    "eta",
    "ram",
    "rom",
    "abc",
    "eth",
    "saas",
    "yolo",
    "eq",
    "coo",
    "ac",
    "ira",
}
_SPELT = {"AC", "ER", "UN", "ID", "IV", "UPS", "EST", "ETA", "ABC", "EQ", "COO", "ESA", "OK"} - {"OK"}
_WORDS = set(  # in capitals for emphasis, or said as words
    "AM AN AS AT BE BY DO GO HE HI IF IN IS IT ME MY NO OF OH OK ON OR OX PA SO TO UP US WE AH AW AX EH "
    "EX HA HO HM "
    "LO MA MR MS DR ST OW UH UM YE YO ACT ADD AGE AGO AID AIM AIR ALL AND ANY APE ARE ARM ART ASK ATE BAD "
    "BAG BAN BAR BAT "
    "BED BEE BEG BET BIG BIT BOB BOX BOY BUN BUS BUT BUY BYE CAN CAP CAR CAT COP COW CRY CUP CUT DAD DAY "
    "DEN DID DIE DIG "
    "DIM DOG DOT DRY DUE EAR EAT EGG END EVE EYE FAN FAR FAT FED FEE FEW FIG FIT FIX FLY FOE FOG FOR FOX "
    "FUN FUR GAP "
    "GAS GET GOD GOT GUN GUT GUY HAD HAM HAS HAT HAY HEN HER HEY HID HIM HIP HIS HIT HOP HOT HOW HUG HUT "
    "ICE ILL INK "
    "INN ITS JAM JAR JAW JET JOB JOY KEY KID KIN KIT LAB LAD LAP LAW LAY LEG LET LID LIE LIP LIT LOG LOT "
    "LOW MAD "
    "MAN MAP MAT MAY MEN MET MIX MOB MOM MUD MUM NET NEW NIL NOD NOR NOT NOW NUN NUT OAK ODD OFF OIL OLD "
    "ONE OUR OUT "
    "OWE OWL OWN PAN PAT PAY PEN PET PIE PIG PIN PIT POP POT PUT RAG RAM RAN RAT RAW RAY RED RIB RID RIG "
    "RIM RIP ROB "
    "ROD ROT ROW RUB RUG RUN SAD SAT SAW SAY SEA SEE SET SEX SHE SHY SIN SIP SIR SIT SIX SKI SKY SON SOW "
    "SPY SUM SUN "
    "TAN TAP TAR TAX TEA TEN THE TIE TIN TIP TOE TON TOO TOP TOY TRY TUB TWO USE VAN VET WAR WAS WAX WAY "
    "WEB WET WHO "
    "WHY WIN WIT WON YEN YES YET YOU ZIP ZOO SIM GIF COVID AIDS NASA NATO PUMA ROM SAM JIM TOM JOE AMY "
    "ANN LEE MAX BEN "
    "DAN RON TIM LEO EVA ADA IAN JAN KIM LIZ MEG PAM RAY SUE TED UNO WOW YAY YUM AHA UGH HUH NAH YEP "
    "NOPE".split()
)
_CAPITALS = re.compile(r"(?<![\w'])([A-Z]{2,6})('?s)?(?![\w']|\.[A-Za-z])")
_AMPERSAND = re.compile(r"(?<![\w'])([A-Z]{1,2}) ?& ?([A-Z]{1,2})(?![\w'])")
_LOWER_KNOWN = re.compile(
    rf"(?<![\w'.])({'|'.join(sorted(_KNOWN, key=len, reverse=True))})('?s)?(?![\w'])", re.I
)
_SAID = (
    (re.compile(r"\bPh\.? ?D\b\.?"), "p h d"),
    (re.compile(r"\bC#(?!\w)"), "C sharp"),
    (re.compile(r"\bWW(?:II|2|-II)\b"), "world war two"),
    (re.compile(r"\bWW(?:I|1)\b"), "world war one"),
    (re.compile(r"(?<!\w)#(?=[A-Za-z])"), "hashtag "),
    (re.compile(r"\b[Ww]i-?[Ff]i\b"), "wi-fi"),
    (
        re.compile(
            r"\bIT(?= (?:department|support|team|staff|industry|specialist|professional|company|job|sector"
            r"|manager|security|systems?|infrastructure|guy|worker)s?\b)"
        ),
        "i t",
    ),
    (re.compile(r"(?<![\w])[wW]/o(?![\w/])"), "without"),
    (re.compile(r"(?<![\w])[wW]/(?= ?[a-zA-Z])"), "with "),
    (re.compile(r"(?<=[A-Za-z])/(?=[A-Za-z])"), " "),
)


def spell_acronyms(text: str) -> str:
    """Acronyms letter by letter, as far as capitals tell; in a text all in capitals they tell nothing."""
    for pattern, words in _SAID:
        text = pattern.sub(words, text)
    text = _AMPERSAND.sub(lambda m: " ".join([*m[1], "and", *m[2]]), text)
    if not _shouted(text):
        text = _CAPITALS.sub(_acronym, text)
    return _LOWER_KNOWN.sub(lambda m: _letters(m[1], m[2]), text)


def _shouted(text: str) -> bool:
    """Whether capitals say nothing, since most words of some length have nothing else."""
    found = re.findall(r"[A-Za-z]{2,}", text)
    capitals = [word for word in found if word.isupper()]
    return len(capitals) > 2 and len(capitals) > len(found) / 2


def _acronym(match: re.Match[str]) -> str:
    letters = match[1]
    if letters in _SPELT or letters.lower() in _KNOWN:
        return _letters(letters, match[2])
    if letters == "US":  # "the US", "US troops"; alone it may be shouted
        around = re.search(
            r"\b(?:the|The|a|in|of|from|to) $", match.string[max(0, match.start() - 6) : match.start()]
        )
        return (
            "u s"
            if around or re.match(r" [A-Z]| [a-z]{4}", match.string[match.end() : match.end() + 5])
            else "us"
        )
    said = letters in _WORDS or len(letters) > 3 or not (len(letters) == 2 or _initial(letters))
    return match[0] if said else _letters(letters, match[2])


def _initial(letters: str) -> bool:
    """Whether three letters are no syllable, or are at least no common word."""
    return letters not in _WORDS


def _letters(letters: str, ending: str | None) -> str:
    return " ".join(letters.lower()) + ("'s" if ending else "")


# Abbreviations ----------------------------------------------------------------------------------------------

_FULL = {
    "mr": "mister", "mrs": "missus", "ms": "miss", "dr": "doctor", "prof": "professor", "rev": "reverend",
    "hon": "honorable", "gen": "general", "col": "colonel", "capt": "captain", "lt": "lieutenant",
    "sgt": "sergeant", "gov": "governor", "sen": "senator", "jr": "junior", "sr": "senior", "mt": "mount",
    "messrs": "messieurs", "st": "street", "etc": "et cetera", "vs": "versus", "esq": "esquire",
    "co": "company", "inc": "incorporated", "ltd": "limited", "corp": "corporation", "dept": "department",
    "ave": "avenue", "blvd": "boulevard", "approx": "approximately", "vol": "volume", "jan": "january",
    "feb": "february", "aug": "august", "sept": "september", "oct": "october", "nov": "november",
    "dec": "december", "drs": "doctors", "viz": "namely", "apr": "april", "rd": "road", "hwy": "highway",
    "pkwy": "parkway", "govt": "government", "assn": "association", "bros": "brothers", "tel": "telephone",
    "ext": "extension", "est": "established", "max": "maximum", "min": "minimum", "misc": "miscellaneous",
    "univ": "university", "intl": "international", "natl": "national", "cpl": "corporal", "maj": "major",
    "cmdr": "commander", "adm": "admiral", "pvt": "private", "supt": "superintendent", "pres": "president",
    "mgr": "manager", "bldg": "building", "apt": "apartment", "ste": "suite", "mfg": "manufacturing",
    "avg": "average", "temp": "temperature", "cf": "compare", "ca": "circa", "mon": "monday",
    "tues": "tuesday",
    "thurs": "thursday", "fri": "friday", "ft": "feet", "ln": "lane", "sq": "square",
}  # fmt: skip
# Without a point they could be words, names or something else.
_POINT_ALWAYS = {
    "max",
    "min",
    "est",
    "ca",
    "mon",
    "fri",
    "temp",
    "apt",
    "ste",
    "ext",
    "adm",
    "pres",
    "misc",
    "sq",
    "ln",
}
_POINT_BEFORE = {
    "fig": "figure", "figs": "figures", "ch": "chapter", "sec": "section", "p": "page", "pp": "pages",
    "no": "number", "nos": "numbers", "vol": "volume", "art": "article", "eq": "equation",
    "para": "paragraph", "ver": "version", "op": "opus", "c": "circa", "ca": "circa",
    "tab": "table",
    "pg": "page", "pt": "part", "bk": "book", "lv": "level", "lvl": "level", "apt": "apartment",
    "ste": "suite", "rm": "room", "est": "established", "max": "maximum",
    "min": "minimum",
}  # fmt: skip
_BARE = "blvd dept approx vs etc govt ltd hwy pkwy assn bldg intl mgr avg".split()
_BEFORE_NAME = "prof gen col capt lt sgt gov sen rev hon mt cpl maj cmdr supt".split()
_AFTER_CAPITAL_WORD = {
    "st": "street", "ave": "avenue", "rd": "road", "ln": "lane", "dr": "drive", "sq": "square",
    "inc": "incorporated", "corp": "corporation", "bros": "brothers", "jr": "junior",
    "sr": "senior",
}  # fmt: skip
# Words without vowels that are not read letter by letter, as others are: tv, fpcc.
_VOWELLESS = {
    *_FULL,
    *"hm hmm mm mmm sh shh pst psst brr brrr grr grrr pfft tsk zzz nth th nd rd ll ft lb lbs".split(),
}
_CASED = (
    (re.compile(rf"\b(?i:({'|'.join(_BARE)}))\b(?!\.)"), lambda m: _FULL[m[1].lower()]),
    (
        re.compile(rf"\b({'|'.join(word.capitalize() for word in _BEFORE_NAME)}) (?=[A-Z][a-z])"),
        lambda m: f"{_FULL[m[1].lower()]} ",
    ),
    (re.compile(r"(?<=\d )((?:[A-Z][a-z]{1,20} ){1,3})Dr\b\.?"), lambda m: f"{m[1]}drive"),
    (
        re.compile(r"(?<=[A-Z])([a-z]{1,20}(?:'s)? )(St|Ave|Rd|Ln|Sq|Dr)\.(?= [a-z]|[,;:!?)])"),
        lambda m: m[1] + _AFTER_CAPITAL_WORD[m[2].lower()],
    ),
    (
        re.compile(r"(?<=[a-z])( (?:St|Ave|Rd|Ln|Sq|Inc|Corp|Bros|Jr|Sr))\b(?=$|[,;:!?)]|\.$| [a-z])"),
        lambda m: " " + _AFTER_CAPITAL_WORD[m[1].strip().lower()],
    ),
    (re.compile(r"\b[Nn]o(s?)\.? ?(?=\d)|№ ?(?=\d)"), lambda m: f"number{m[1] or ''} "),
    (
        re.compile(rf"\b(?i:({'|'.join(sorted(_POINT_BEFORE, key=len, reverse=True))}))\. ?(?=\d)"),
        lambda m: _POINT_BEFORE[m[1].lower()] + " ",
    ),
    (re.compile(r"\b(?i:(fig|vol|apt|pp|pg|eq)) (?=\d)"), lambda m: _POINT_BEFORE[m[1].lower()] + " "),
    (re.compile(r"\bFt\.? (?=[A-Z][a-z])"), lambda m: "Fort "),
    (re.compile(r"\bRep\. (?=[A-Z])"), lambda m: "Representative "),
    (re.compile(r"\bet al\b\.?(?= ?[(,a-z])"), lambda m: "et al"),
    (re.compile(r"(?<![\w.])(?i:O\.?K)\b"), lambda m: "okay"),
)


def expand_cased(text: str) -> str:
    """Abbreviations that capitals or what follows tell from words; with or without a point."""
    for pattern, expand in _CASED:
        text = pattern.sub(expand, text)
    return text


def expand_abbreviations(text: str) -> str:
    """Abbreviations of a text in lower case."""
    text = re.sub(r"\be\.g\.", "for example", text)
    text = re.sub(r"\bi\.e\.", "that is", text)
    # u.s.a. -> u s a; a point that ends the text stays a full stop
    text = re.sub(r"(?<![\w.'])[a-z](?:\.[a-z])+\b(\.?)", _spell_initials, text)
    text = re.sub(r"\bno\. ?(?=\d)", "number ", text)
    text = re.sub(r"(?<=\d) ?ft\b\.?", " feet", text)
    text = re.sub(r"\bst\. (?=[a-z])", "saint ", text)
    text = re.sub(r"\b(mr|mrs|ms|dr|drs|messrs)\b(\.?)", _expand, text)
    text = re.sub(r"\b([a-z]+)(\.)(?![a-z])", _expand, text)
    return re.sub(r"(?<![\w'])[b-df-hj-np-tv-xz]{2,5}(?![\w'])", _spell_vowelless, text)


def _spell_vowelless(match: re.Match[str]) -> str:
    return match[0] if match[0] in _VOWELLESS else " ".join(match[0])


def _spell_initials(match: re.Match[str]) -> str:
    ends = match[1] and match.end() == len(match.string)
    return " ".join(re.findall("[a-z]", match[0])) + ("." if ends else "")


def _expand(match: re.Match[str]) -> str:
    full = _FULL.get(match[1])
    ends = match[2] and match.end() == len(match.string)
    if full is None or (ends and match[1] in _POINT_ALWAYS):  # "the max." ends a sentence
        return match[0]
    joined = match[2] and match.string[match.end() : match.end() + 1].isalpha()
    return full + ("." if ends else " " if joined else "")
