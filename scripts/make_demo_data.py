#!/usr/bin/env python3
"""Makes the demo's data: sentences and the strict JSON that they ask for.

    make_demo_data.py --out-dir DIR [--train 3000] [--heldout 200] [--seed 1]
    make_demo_data.py --check TRAIN.jsonl HELDOUT.jsonl

Writes DIR/demo-train.jsonl and DIR/demo-heldout.jsonl, one conversation a line:

    {"messages":[{"role":"user","content":"Book a table for 4 at the Copper Kettle ..."},
                 {"role":"assistant","content":"{\\"action\\":\\"book\\",\\"place\\":...}"}]}

An answer counts only if it is equal to the expected one, character for character. Four actions,
each with its own keys in a fixed order, whatever the order in the sentence; every value is copied
from the sentence as it stands, so what is learnt is the format and where to look, not facts.
The held-out part uses names, towns, places, items, tasks and events whose words never occur in
training, and sentence patterns and polite wrappings of its own (days, clock times and counts are
closed sets and shared); --check reads both files again and proves it. The same seed gives the
same bytes. Everything below was made up for this file.
"""
import argparse
import json
import os
import random
import re
import sys

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ONSETS = "b br c ch cl d dr f fl g gr h j k l m n p pl qu r s sh sk st t tr v w y z".split()
TIMES = [f"{hour:02}:{minute:02}" for hour in range(7, 22) for minute in (0, 15, 30, 45)]


def invented_word(rng):
    """Words like "brolanti": a model that has to copy them learns to copy, not to recall."""
    while True:
        word = "".join(rng.choice(ONSETS) + rng.choice("aeiou") for _ in range(rng.randint(2, 3)))
        word += rng.choice(("", "", "n", "r", "s", "l", "th", "ck"))
        if word not in HELDOUT_WORDS:
            return word


class Pool:
    """The open-ended values of one part (training or held-out)."""

    def __init__(self, names, town, place, item, task, event, invented=0.0):
        self.names = names.split()
        self.invented = invented  # share of words that are made up on the spot
        self.words = {"town": town, "place": place, "item": item, "task": task, "event": event}
        self.words = {key: tuple(part.split() for part in parts)
                      for key, parts in self.words.items()}

    def word(self, rng, known):
        return invented_word(rng) if rng.random() < self.invented else rng.choice(known)

    def draw(self, rng, key):
        if key in ("name", "for"):
            return self.word(rng, self.names).capitalize()
        first, second = (self.word(rng, part) for part in self.words[key])
        if key == "town":
            return (first + second).capitalize()
        if key == "place":
            return f"{first.capitalize()} {second.capitalize()}"
        return f"{first} the {second}" if key == "task" else f"{first} {second}"


TRAIN = Pool(
    """Adam Agnes Albert Alice Amir Amy Andre Anika Anna Anton Arthur Astrid Aylin Basil Beatrice
    Ben Bianca Boris Brenda Bruno Callum Carla Carlos Caroline Cecil Celia Chloe Clara Clive Cora
    Dan Daria David Delia Dennis Diana Dmitri Dora Doris Duncan Edgar Edith Elena Elias Ella Elsa
    Emil Emily Emma Eric Erika Ernest Ethan Eva Fatima Felix Fiona Flora Frank Frida Gavin Gemma
    George Gina Giulia Glenn Gloria Grace Greta Gustav Hanna Harold Harriet Hassan Hazel Hector
    Heidi Helen Henry Hilda Hugo Ian Ida Igor Ines Ingrid Irene Iris Ismail Ivan Jack Jada James
    Jana Jasper Jean Jenny Jonas Josef Joyce Judith Julia Julian Karim Karin Kate Keiko Kenji Kira
    Klaus Kofi Lars Laura Lena Leo Leila Lewis Lidia Linda Lisa Lorenzo Louis Lucas Lucy Luis Lydia
    Mabel Magnus Malik Marco Maria Marta Martin Maud Max Maya Mei Mia Milan Milo Mina Miriam Mona
    Monica Nadia Nathan Nell Nico Nina Noah Noel Nora Olga Oliver Olivia Omar Oscar Otto Owen Paolo
    Patrick Paul Paula Pedro Petra Philip Priya Rachel Rafael Ralph Ravi Rita Robert Rolf Rosa Ruby
    Rufus Ruth Sam Samira Sana Sara Simon Sofia Stella Sven Tara Tessa Theo Thomas Tilda Tomas
    Ursula Vera Victor Viola Walter Wanda Wendy Wilma Yara Yusuf Zara Zoe""",
    town=("ash birch black bram brook cal castle clay cold crow deer dun east elm fair fal fern "
          "fox glen gold grey hart haw hay high hol king lang lin long mar mill moor nor oak pen "
          "red rock ross sand shel silver south stan stone swan thorn wal west white win wood",
          "bridge brook bury by cliff combe cross dale field ford gate ham haven hill hurst ley "
          "mere mouth port stead ton well wick worth"),
    place=("amber blue brass bright broken burning copper crooked dancing empty flying friendly "
           "frozen gentle giant golden green happy hidden hungry iron jolly laughing little lucky "
           "merry old painted purple quiet red rusty silver singing sleepy spotted twisted velvet "
           "white wild wooden yellow",
           "anchor apple badger barrel bear bell boot bottle bridge candle cat chimney corner crown "
           "dragon drum elephant feather fork fox garden goat hammer harbour horse kettle key ladder "
           "lamp lemon lion mill moon onion oven owl parrot pepper pigeon plum rabbit rose sparrow "
           "spoon star table tiger tree wagon whale wheel window"),
    item=("big black blue brown cheap clean dark empty fresh gold green grey heavy large light long narrow "
          "new old orange pink plain purple red round short silver small smooth soft square strong "
          "thick thin used warm white wide wooden yellow",
          "apples bags balls bananas baskets batteries belts blankets books bottles bowls boxes "
          "brushes buckets bulbs buttons cakes candles caps carpets chairs clocks coats cups "
          "curtains cushions desks doors drums eggs envelopes flags folders forks gloves hammers "
          "hats jackets jars keys knives ladders lamps lemons mats mirrors mugs nails notebooks "
          "onions pans pencils pillows pipes plates pots ropes rugs scarves shelves shirts shoes "
          "socks spoons stools tables tents tiles towels trays umbrellas vases wheels"),
    task=("bring buy carry change check clean collect count draw fetch find fix fold hide label measure "
          "mend move open order pack paint photograph pick return sell sort test wash weigh wrap",
          "apples bags bike bikes boat boats books boots boxes bread cake camera car cards chair chairs "
          "clock coat cups curtain desk dishes door fence files flowers forms fridge gate grass "
          "guitar hat hedge invoice jacket jars kettle key keys knives lamp letter lock map menu "
          "mirror onions oven parcel phone piano pictures pipes plan plants plates printer radio "
          "report roof rope roses rug scarf sheets shelf shirts shoes sink socks soup stairs stove "
          "table tent tickets tiles tools towels toys tree trunk umbrella van vase wall wheels "
          "windows"),
    event=("art baking board book budget chess choir computer cooking cricket drama drawing driving "
           "English family football French garden guitar hockey history maths music office painting "
           "piano planning poker press project sailing sales school sewing singing tax team tennis "
           "training violin weekly yoga",
           "appointment breakfast call class course dinner exam game group interview lesson lunch "
           "match meeting party practice quiz review session talk tour walk workshop"),
    invented=0.4)

HELDOUT = Pool(
    """Abigail Amelia Angus Arjun Bernard Bridget Camille Cyril Daphne Dominic Eleanor Esther
    Fabian Florence Gordon Gwen Humphrey Imogen Isaac Jerome Joanna Kamal Kirsten Leonard Lorna
    Marcel Margaret Matilda Mohan Naomi Nigel Ophelia Percy Quentin Ramona Roland Rosalind Rupert
    Selma Sidney Tabitha Tariq Trevor Valerie Vincent Winston Xavier Yolanda""",
    town=("apple barley beck bur copper cran dove drift ever frost hazel hedge iron lark maple nether "
          "otter peach quarry raven rush salt tan under wolf yarrow",
          "acre bank barrow beach chester cote den fold garth grove holm lake marsh minster ness "
          "pool ridge shaw side stow thorpe vale water"),
    place=("brave clever crimson crystal curious dusty emerald fancy foggy gallant grumpy humble "
           "ivory marble mighty misty noble polite proud royal scarlet secret shiny silent stormy "
           "tender thirsty wandering",
           "acorn arrow basket beetle butterfly cabin camel carrot cherry cloud compass dolphin eagle "
           "falcon fountain hedgehog kite lantern lobster mermaid monkey otter peacock penguin "
           "pumpkin raven shepherd squirrel turtle umbrella violin walnut"),
    item=("bent broad bronze crimson curved damp dusty elegant fancy flat foreign hollow ivory local "
          "modern padded polished sharp simple spare sturdy tall tiny violet",
          "axes beads benches bricks brooms cables cameras carrots combs crates feathers fences "
          "frames helmets kettles lanterns magnets melons needles paddles peaches phones planks "
          "puzzles ribbons saddles screens spades stamps statues taps trophies trunks whistles"),
    task=("borrow brush cover decorate deliver describe empty hang inspect install lift oil polish "
          "prepare rescue scan search shake shorten store tidy unload update",
          "attic balcony basement bathtub blanket bridge candles carpet ceiling certificate chimney "
          "contract cupboard drawer dress engine freezer goat hammock heater ladder lantern lawn "
          "luggage mailbox parrot passport photos pillow poster puppy rabbits recipe saddle suitcase "
          "sweater trailer uniform"),
    event=("archery ballet band biology boxing camping carpentry chemistry circus dance "
           "fencing fitness geology golf harp hiking juggling karate knitting legal Latin pottery "
           "physics research rowing Spanish surfing swimming theatre trumpet wedding writing",
           "audition briefing ceremony checkup concert debate demo evening festival hearing lecture "
           "parade picnic rehearsal seminar show tasting tournament trial visit"))
HELDOUT_WORDS = {name.lower() for name in HELDOUT.names}
for _first, _second in HELDOUT.words.values():
    HELDOUT_WORDS.update(word.lower() for word in _first + _second)

# The keys of each action, in the order in which they are written.
SCHEMAS = {
    "order": ("item", "count", "name", "town"),
    "book": ("place", "people", "day", "time"),
    "remind": ("name", "task", "day", "time"),
    "move": ("event", "name", "from", "to"),
}

TRAIN_FRAMES = {
    "order": """send {count} {item} to {name} in {town}
{name} in {town} needs {count} {item}
{name} from {town} wants to order {count} {item}
order {count} {item} for {name}, who lives in {town}
we need {count} {item} in {town}, the customer is {name}
I want {count} {item} delivered to {town}, under the name {name}
add an order: {count} {item}, {name}, {town}
new order from {town}: {name} takes {count} {item}
put {name} from {town} down for {count} {item}
ship {count} {item} to {town}, care of {name}
{count} {item} should go to {name} in {town}
in {town}, {name} is waiting for {count} {item}
get {name} {count} {item}, the address is in {town}
a customer called {name} in {town} asked for {count} {item}
for {name} in {town}: {count} {item}
could you send {name} in {town} {count} {item}
there is an order of {count} {item} for {town}, from {name}
{town} called, {name} would like {count} {item}""",
    "book": """book a table for {people} at the {place} on {day} at {time}
book the {place} for {people} people, {day} at {time}
reserve a table at the {place} for {day}, {time}, {people} people
we are {people} and want to eat at the {place} on {day} at {time}
on {day} at {time} we need a table for {people} at the {place}
get me a table at the {place}, {people} people, {day}, {time}
can we have {people} seats at the {place} on {day} at {time}
I need a table at {time} on {day} at the {place} for {people}
at the {place}, book {people} seats for {day} at {time}
table for {people}, {day}, {time}, the {place}
make a reservation for {people} on {day}, {time}, at the {place}
{people} of us are going to the {place} on {day} at {time}
dinner for {people} at the {place}, {day} {time}
see if the {place} has room for {people} on {day} at {time}
the {place} on {day}, {time}, for {people} people
call the {place} and book for {people} at {time} on {day}
for {day} at {time}, reserve {people} places at the {place}
{day}, {time}: a table at the {place}, {people} guests""",
    "remind": """remind {name} to {task} on {day} at {time}
on {day} at {time}, remind {name} to {task}
{name} has to {task} on {day} at {time}
tell {name} to {task} at {time} on {day}
set a reminder for {name}: {task}, {day}, {time}
{name} must not forget to {task} on {day}, {time}
at {time} on {day} {name} should {task}
make sure that {name} will {task} on {day} at {time}
{day} at {time}: {name} needs to {task}
reminder for {day}, {time}: {name}, {task}
{name} said: remind me to {task} on {day} at {time}
it is important that {name} remembers to {task}, {day} at {time}
add a reminder on {day} at {time} so that {name} can {task}
let {name} know at {time} on {day} that it is time to {task}
what {name} has to do on {day} at {time}: {task}
come {day}, {time}, {name} wants to {task}
ask {name} to {task}, on {day} at {time}
{name} forgot to {task}, try again on {day} at {time}""",
    "move": """move the {event} with {name} from {from} to {to}
move {name}'s {event} from {from} to {to}
{name} cannot come to the {event} on {from}, make it {to}
the {event} with {name} is on {to} now, not on {from}
the {event} on {from} with {name} has to move to {to}
change the {event} of {name} to {to} instead of {from}
shift {name}'s {event} to {to}, it was on {from}
{name} wants the {event} on {to} rather than {from}
can we have the {event} with {name} on {to} and not on {from}
{from} is bad for {name}, put the {event} on {to}
the {from} {event} with {name} is now on {to}
instead of {from}, {name} has the {event} on {to}
put the {event} for {name} on {to}, {from} does not work
from {from} to {to}: the {event} with {name}
on {from} {name} is busy, so the {event} will be on {to}
take the {event} with {name} off {from} and put it on {to}
{name} asked to move the {event} to {to}, away from {from}
no {event} for {name} on {from}, it happens on {to}""",
}

HELDOUT_FRAMES = {
    "order": """deliver {count} {item} to {name}, who is in {town}
{name} ordered {count} {item} and lives in {town}
the people in {town} need {count} {item}, ask for {name}
{count} {item} for {name}, to be sent to {town}
pack {count} {item} and send them off to {town} for {name}
I am {name} from {town} and I would like {count} {item}""",
    "book": """find us a table at the {place} for {people} people on {day} at {time}
we would like to visit the {place} at {time} on {day}, {people} people
I am looking for {people} seats on {day} at {time}, at the {place}
ask the {place} for a table on {day} at {time}, we are {people}
{people} people will have lunch at the {place} on {day} at {time}
keep a table free at the {place} for {people} on {day} at {time}""",
    "remind": """do not let {name} forget to {task} on {day} at {time}
{name} needs a reminder to {task} at {time} on {day}
write down that {name} has to {task}, {day} at {time}
on {day}, {name} should {task} at {time}
send {name} a note on {day} at {time} to {task}
when it is {time} on {day}, {name} will have to {task}""",
    "move": """reschedule the {event} with {name} from {from} to {to}
{name} is away on {from}, so move the {event} to {to}
the {event} with {name} was on {from}, but now it is on {to}
push {name}'s {event} back from {from} to {to}
{name} can do the {event} on {to} but not on {from}
we planned the {event} with {name} for {from}, change that to {to}""",
}

# A frame that begins with one of these also takes a "Please" in front.
IMPERATIVES = """add ask book call change deliver find get let make move order pack push put remind
reschedule reserve save send set shift ship take tell write""".split()
# before|after the sentence; the plain form is half of all.
TRAIN_WRAPS = """|
Hi, |
Hello, |
Good morning, |
Hey, |, please
|, please
|, thanks
|, thank you
Hello there. |
One more thing: |
Quick note: |
By the way, |
I have a request. |
Sorry to bother you, but |
|. That is all
|. Thanks a lot""".split("\n")
HELDOUT_WRAPS = """|
Good evening, |
Next: |
If possible, |
Hi again. |
|. Many thanks
|, if you can""".split("\n")


def sentence(rng, frame, values, wraps):
    """One way to say `frame`: wrapped or not, with or without a capital and a full stop."""
    before, after = ("", "") if rng.random() < 0.5 else rng.choice(wraps).split("|")
    text = frame.format(**values)
    if frame.split()[0] in IMPERATIVES and before + after == "" and rng.random() < 0.3:
        text = "please " + text
    starts_sentence = before == "" or before.rstrip().endswith(".")
    if starts_sentence and rng.random() < 0.8:
        text = text[0].upper() + text[1:]
    return before + text + after + rng.choice((".", ".", "", "!"))


def draw_values(rng, action, pool):
    values = {}
    for key in SCHEMAS[action]:
        if key == "count":
            values[key] = rng.randint(2, 99)
        elif key == "people":
            values[key] = rng.randint(2, 20)
        elif key in ("day", "from", "to"):
            values[key] = rng.choice([day for day in DAYS if day not in values.values()])
        elif key == "time":
            values[key] = rng.choice(TIMES)
        else:
            values[key] = pool.draw(rng, key)
    return values


def make_part(rng, count, pool, frames, wraps):
    frames = {action: text.split("\n") for action, text in frames.items()}
    records, seen = [], set()
    while len(records) < count:
        # Actions and frames take turns, so that every one has its share of even a small part.
        action = tuple(SCHEMAS)[len(records) % len(SCHEMAS)]
        frame = frames[action][len(records) // len(SCHEMAS) % len(frames[action])]
        values = draw_values(rng, action, pool)
        answer = json.dumps({"action": action, **values}, separators=(",", ":"))
        if answer in seen:
            continue
        seen.add(answer)
        question = sentence(rng, frame, values, wraps)
        records.append({"messages": [{"role": "user", "content": question},
                                     {"role": "assistant", "content": answer}]})
    rng.shuffle(records)
    return records


def write_jsonl(path, records):
    with open(path, "w", encoding="ascii", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, separators=(",", ":")) + "\n")


OPEN_KEYS = ("name", "town", "place", "item", "task", "event")


def pattern_of(question, values):
    """The sentence with its values taken out, without case and punctuation."""
    # Longest first: "12" must not eat a part of "12:30".
    for key, value in sorted(values.items(), key=lambda pair: -len(str(pair[1]))):
        question = re.sub(rf"(?<![\w:]){re.escape(str(value))}(?![\w:])", f" {{{key}}} ", question,
                          count=1, flags=re.IGNORECASE)
    return " ".join(re.findall(r"\{\w+\}|[\w']+", question.lower()))


def read_part(path):
    part = []
    with open(path, encoding="ascii") as file:
        for line in file:
            user, assistant = (message["content"] for message in json.loads(line)["messages"])
            values = json.loads(assistant)
            action = values.pop("action")
            if tuple(values) != SCHEMAS[action]:
                raise SystemExit(f"{path}: an answer has other keys than its action: {assistant}")
            part.append((user, values))
    return part


def check(train_path, heldout_path):
    """Every complaint about the two files as a list of lines."""
    train, heldout = read_part(train_path), read_part(heldout_path)
    complaints = []
    for path, part in ((train_path, train), (heldout_path, heldout)):
        for user, values in part:
            missing = [str(v) for v in values.values() if str(v).lower() not in user.lower()]
            if missing:
                complaints.append(f"{path}: {missing[0]!r} is not in its sentence: {user}")
    train_words = set(re.findall(r"[a-z]+", " ".join(user for user, _ in train).lower()))
    # Of each open kind: the words that training answers use. A held-out value shares none of them.
    value_words = {key: set() for key in OPEN_KEYS}
    for _, values in train:
        for key in OPEN_KEYS:
            value_words[key].update(str(values.get(key, "")).lower().split())
    for user, values in heldout:
        for key in OPEN_KEYS:
            words = set(str(values.get(key, "")).lower().split()) - {"the"}
            if words & value_words[key]:
                complaints.append(f"{heldout_path}: {key} {values[key]!r} shares a word with training")
            if key in ("name", "town") and words & train_words:
                complaints.append(f"{heldout_path}: {key} {values[key]!r} occurs in training")
    train_patterns = {pattern_of(user, values) for user, values in train}
    for text in TRAIN_FRAMES.values():
        train_patterns.update(" ".join(re.findall(r"\{\w+\}|[\w']+", frame.lower()))
                              for frame in text.split("\n"))
    for user, values in heldout:
        pattern = pattern_of(user, values)
        if any(f" {known} " in f" {pattern} " for known in train_patterns):
            complaints.append(f"{heldout_path}: the pattern of this sentence is in training: {user}")
    if not complaints:
        print(f"{len(train)} training records, {len({pattern_of(*r) for r in train})} sentence "
              f"patterns; {len(heldout)} held-out records, "
              f"{len({pattern_of(*r) for r in heldout})} patterns; no value or pattern in common")
    return complaints


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out-dir", help="folder for demo-train.jsonl and demo-heldout.jsonl")
    parser.add_argument("--train", type=int, default=3000, help="training records")
    parser.add_argument("--heldout", type=int, default=200, help="held-out records")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", nargs=2, metavar=("TRAIN", "HELDOUT"),
                        help="verify that nothing of HELDOUT occurs in TRAIN")
    options = parser.parse_args()
    if options.check:
        complaints = check(*options.check)
        print("\n".join(complaints[:20]), file=sys.stderr, end="\n" if complaints else "")
        return 1 if complaints else 0
    if not options.out_dir:
        parser.error("either --out-dir or --check is needed")
    os.makedirs(options.out_dir, exist_ok=True)
    parts = (("demo-train.jsonl", options.train, TRAIN, TRAIN_FRAMES, TRAIN_WRAPS),
             ("demo-heldout.jsonl", options.heldout, HELDOUT, HELDOUT_FRAMES, HELDOUT_WRAPS))
    for name, count, pool, frames, wraps in parts:
        rng = random.Random(f"{options.seed} {name}")
        write_jsonl(os.path.join(options.out_dir, name),
                    make_part(rng, count, pool, frames, wraps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
