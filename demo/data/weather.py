"""The weather tool of the published checks, in English and Chinese."""

from __future__ import annotations

from demo.data import words
from demo.data.draw import Draw
from demo.data.shapes import Arguments, Shape, Use

ENGLISH = (
    "What is the weather in {city}?",
    "What's the weather like in {city}?",
    "How is the weather in {city}?",
    "Check the weather in {city}.",
    "Please check the weather in {city}.",
    "Get the current weather for {city}.",
    "What is the current weather in {city}?",
    "What is the weather in {city} today?",
    "Weather in {city}?",
    "Is it raining in {city}?",
    "How cold is it in {city}?",
    "Tell me the weather in {city}.",
)
CHINESE = (
    "请查询{city}的天气。",
    "{city}的天气怎么样?",
    "{city}今天天气如何?",
    "请查一下{city}的天气。",
    "查询{city}天气",
    "{city}天气怎么样?",
    "帮我查查{city}的天气。",
    "请帮我看一下{city}的天气。",
    "我想知道{city}的天气。",
    "帮我查一下{city}的天气。",
)
_UNITS = {"celsius": "摄氏度", "fahrenheit": "华氏度"}


def weather_use(draw: Draw) -> Use:
    return WEATHER.use(draw)


def _fill(draw: Draw) -> tuple[dict[str, str], Arguments]:
    """The whole request is one value here, since each language has its own words."""
    is_chinese = draw.happens(0.5)
    city = draw.one(words.CHINESE_CITIES if is_chinese else words.CITIES)
    if is_chinese and not draw.held_out and draw.happens(0.5):
        city = draw.one(words.LONG_CHINESE_CITIES)
    request = draw.phrase(CHINESE if is_chinese else ENGLISH).format(city=city)
    if draw.happens(0.75):
        return {"request": request}, {"city": city}
    unit = draw.any(list(_UNITS))
    said = f"单位用{_UNITS[unit]}。" if is_chinese else f" Use {unit}."
    return {"request": request + said}, {"city": city, "unit": unit}


WEATHER = Shape(
    ("get_current_weather",) * 3 + ("get_weather", "weather_now"),
    "Get weather by city",
    {
        "city": {"type": "string"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    },
    ("city",),
    ("{request}",),
    _fill,
)
