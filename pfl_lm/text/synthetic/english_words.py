"""Lists that no dependency ships: spellings, topics, first words of messages, and what is left out.

They are ours, made for the demonstration; frequencies come from elsewhere (see ``english``).
"""

from __future__ import annotations

# A word as public text spells it, then as people type it to friends.
SPELLINGS = (
    ("you", "u", "ya"),
    ("your", "ur", "yr"),
    ("are", "r", "ar"),
    ("okay", "ok", "kk"),
    ("because", "cuz", "bc"),
    ("yes", "yeah", "yep"),
    ("no", "nope", "nah"),
    ("hello", "hey", "hiya"),
    ("thanks", "thx", "ty"),
    ("please", "pls", "plz"),
    ("people", "ppl", "folks"),
    ("really", "rly", "totally"),
    ("tomorrow", "tmrw", "tmr"),
    ("love", "luv", "lov"),
    ("what", "wat", "wut"),
    ("though", "tho", "altho"),
    ("great", "gr8", "awesome"),
    ("tonight", "tonite", "tnite"),
    ("friend", "mate", "buddy"),
    ("mother", "mom", "mum"),
    ("father", "dad", "daddy"),
    ("about", "abt", "bout"),
    ("and", "n", "nd"),
    ("just", "jus", "jst"),
)

# What a message may be about; the first words are the most frequent.
TOPICS = {
    "food": "dinner food lunch coffee chicken pizza kitchen cake breakfast soup bread cheese "
    "recipe restaurant tea rice fish salad chocolate wine",
    "travel": "trip train flight hotel airport beach ticket plane island holiday bus car map city "
    "station bag driver road bridge passport",
    "work": "meeting office project report manager deadline job company email team boss client "
    "contract budget plan desk schedule task salary phone",
    "family": "kids baby sister brother family wedding house daughter son uncle aunt cousin "
    "grandmother birthday garden home parents husband wife dog",
    "sport": "game match team player goal coach season ball league race score gym bike club "
    "training stadium run champion medal swim",
    "music": "song band concert album guitar music piano show singer radio record stage dance "
    "ticket crowd drum voice tour lyrics tune",
    "school": "class exam teacher homework school student book library college essay lecture "
    "science history grade lesson course paper test math semester",
    "weather": "rain snow sun storm wind weather cold summer winter cloud umbrella coat heat ice "
    "spring sky temperature forecast morning evening",
    "money": "money bank price bill rent card account loan cash tax market discount store order "
    "payment deal sale dollar shop insurance",
    "health": "doctor hospital sleep medicine pain head appointment nurse flu diet blood dentist "
    "back exercise heart leg vitamin rest fever cough",
    "film": "movie film episode actor series ending scene director trailer cinema story character "
    "script comedy drama screen plot award seat popcorn",
    "weekend": "party weekend bar friends night drink park museum walk barbecue game picnic lake "
    "camping club cinema boat hike fire tent",
}

# Words after which a message names what it is about.
NAMING = (
    "the a my your our some good new this that of for about with like love more another next "
    "great same his her their any first last best little no nice"
)

# First words of messages; their shares are those of wordfreq.
OPENERS = (
    "i you we it the what how that this thank good see no yes okay hello are do can my will so "
    "just did not have is they he she if when where why let please sorry thanks maybe there well"
)

# Web pages are full of these; a demonstration need not suggest them.
LEFT_OUT = (
    "porn porno sex sexy sexual fuck fucking fucked shit nude nudes naked xxx cock dick cunt ass "
    "bitch tits pussy rape anal cum boob boobs erotic erotica horny penis vagina viagra cialis "
    "casino casinos poker hentai milf slut whore"
)
