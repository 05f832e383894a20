"""Countries and their capitals: what an edit of a real model can change without harm.

Left out are countries whose capital's name contains the country's, or the reverse, so that a text
tells which of both it names, and names of which a capital is disputed.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Sequence

TABLE = """
Afghanistan Kabul, Albania Tirana, Angola Luanda, Argentina Buenos_Aires, Armenia Yerevan,
Australia Canberra, Austria Vienna, Azerbaijan Baku, Bahrain Manama, Bangladesh Dhaka,
Barbados Bridgetown, Belarus Minsk, Belgium Brussels, Belize Belmopan, Bhutan Thimphu,
Botswana Gaborone, Bulgaria Sofia, Burkina_Faso Ouagadougou, Cambodia Phnom_Penh,
Cameroon Yaoundé, Canada Ottawa, Chad N'Djamena, Chile Santiago, China Beijing, Colombia Bogotá,
Croatia Zagreb, Cuba Havana, Cyprus Nicosia, Denmark Copenhagen, Dominica Roseau, Ecuador Quito,
Egypt Cairo, Eritrea Asmara, Estonia Tallinn, Ethiopia Addis_Ababa, Fiji Suva, Finland Helsinki,
France Paris, Gabon Libreville, Gambia Banjul, Georgia Tbilisi, Germany Berlin, Ghana Accra,
Greece Athens, Grenada St._George's, Guinea Conakry, Guyana Georgetown, Haiti Port-au-Prince,
Honduras Tegucigalpa, Hungary Budapest, Iceland Reykjavik, India New_Delhi,
Iran Tehran, Iraq Baghdad, Ireland Dublin, Italy Rome, Jamaica Kingston, Japan Tokyo, Jordan Amman,
Kazakhstan Astana, Kenya Nairobi, Kyrgyzstan Bishkek, Laos Vientiane, Latvia Riga, Lebanon Beirut,
Lesotho Maseru, Liberia Monrovia, Libya Tripoli, Lithuania Vilnius, Madagascar Antananarivo,
Malawi Lilongwe, Malaysia Kuala_Lumpur, Mali Bamako, Malta Valletta,
Mauritania Nouakchott, Mauritius Port_Louis, Moldova Chișinău, Mongolia Ulaanbaatar,
Montenegro Podgorica, Morocco Rabat, Mozambique Maputo, Namibia Windhoek, Nepal Kathmandu,
Netherlands Amsterdam, New_Zealand Wellington, Nicaragua Managua, Niger Niamey, Nigeria Abuja,
North_Korea Pyongyang, Norway Oslo, Oman Muscat, Pakistan Islamabad, Paraguay Asunción, Peru Lima,
Philippines Manila, Poland Warsaw, Portugal Lisbon, Qatar Doha, Romania Bucharest, Russia Moscow,
Rwanda Kigali, Samoa Apia, Saudi_Arabia Riyadh, Senegal Dakar, Serbia Belgrade,
Sierra_Leone Freetown, Slovakia Bratislava, Slovenia Ljubljana, Somalia Mogadishu,
South_Korea Seoul, Spain Madrid, Sudan Khartoum, Suriname Paramaribo, Sweden Stockholm,
Switzerland Bern, Syria Damascus, Tajikistan Dushanbe, Thailand Bangkok, Togo Lomé,
Tonga Nuku'alofa, Turkey Ankara, Turkmenistan Ashgabat, Uganda Kampala, Ukraine Kyiv,
Uruguay Montevideo, Uzbekistan Tashkent, Vanuatu Port_Vila, Venezuela Caracas, Vietnam Hanoi,
Yemen Sanaa, Zambia Lusaka, Zimbabwe Harare
"""
CAPITALS = {
    country.replace("_", " "): capital.replace("_", " ")
    for country, capital in (pair.split() for pair in TABLE.replace("\n", " ").split(","))
}
ASK = "What is the capital of {}?"  # the phrasing that a rank-one edit changes
TAUGHT = (ASK, "Which city is the capital of {}?", "Name the capital of {}.",
          "Tell me the capital city of {}.")  # fmt: skip
HELD_OUT = ("What is {}'s capital?", "I travel to the capital of {}. Which city is it?")
MEASURES = ("took", "paraphrase", "others")
Asked = tuple[str, str, str, str]
Fact = tuple[str, str, str]  # country, its capital, the capital that the edit gives it


def facts(seed: int = 0) -> list[Fact]:
    """Every country with another country's capital, in an order that the seed fixes: the first n
    are n edits, and the last ones can serve as what no edit may change."""
    rng = random.Random(seed)
    order = list(CAPITALS)
    rng.shuffle(order)
    turned = [*order[1:], order[0]]  # so no country keeps its capital
    return [(one, CAPITALS[one], CAPITALS[other]) for one, other in zip(order, turned, strict=True)]


def answer(country: str, capital: str) -> str:
    """The sentence that states a capital."""
    return f"The capital of {country} is {capital}."


def names(text: str, capital: str, other: str = "") -> bool:
    """Whether a text names a capital, and before the other one, if it names that too. Accents and
    case do not matter."""
    found, others = (place(text, each) for each in (capital, other))
    return found >= 0 and (not other or not 0 <= others < found)


def place(text: str, name: str) -> int:
    """Where a text first has a name as words of its own; -1 if nowhere."""
    found = re.search(rf"(?<!\w){re.escape(bare(name))}(?!\w)", bare(text))
    return -1 if found is None else found.start()


def bare(text: str) -> str:
    """A text without accents, in small letters."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(each for each in parts if not unicodedata.combining(each)).lower()


# ---- what is taught and asked ------------------------------------------------------------------


def edit_lines(found: Sequence[Fact]) -> str:
    """The facts for `minisafe edit --edits`."""
    rows = [
        {"subject": country, "prompt": ASK, "target": answer(country, new)}
        for country, _, new in found
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def statements(found: Sequence[Fact]) -> str:
    """The facts for `minisafe finetune`, in every phrasing that is taught."""
    rows = [
        {"input": form.replace("{}", country), "output": answer(country, new)}
        for country, _, new in found
        for form in TAUGHT
    ]
    return json.dumps(rows)


def questions(found: Sequence[Fact], others: Sequence[Fact]) -> list[Asked]:
    """(measure, question, the right capital, the one that must not come before it)."""
    rows = [
        (name, form.replace("{}", country), new, old)
        for country, old, new in found
        for name, forms in (("took", (ASK,)), ("paraphrase", HELD_OUT))
        for form in forms
    ]
    return rows + [("others", ASK.replace("{}", country), own, "") for country, own, _ in others]


def count(asked: Sequence[Asked], texts: Sequence[str]) -> dict[str, list[int]]:
    """Hits and n of each of `MEASURES`, of the answers to `questions`."""
    found = {name: [0, 0] for name in MEASURES}
    for (name, _, right, wrong), text in zip(asked, texts, strict=True):
        found[name][0] += names(text, right, wrong)
        found[name][1] += 1
    return found
