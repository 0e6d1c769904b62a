"""Word lists that several skills share."""

from __future__ import annotations

ADJECTIVES = (
    *("amber", "azure", "bold", "brave", "bright", "broad", "calm", "clear", "clever", "cold"),
    *("copper", "crisp", "curly", "dark", "deep", "dusty", "eager", "early", "empty", "faint"),
    *("fast", "fine", "flat", "fresh", "gentle", "golden", "grand", "green", "happy", "heavy"),
    *("hidden", "hollow", "humble", "icy", "jolly", "keen", "kind", "large", "late", "light"),
    *("little", "lively", "lonely", "loud", "lucky", "merry", "mild", "misty", "narrow", "neat"),
    *("noble", "old", "pale", "plain", "polite", "proud", "purple", "quick", "quiet", "rapid"),
    *("rare", "red", "rich", "rough", "round", "royal", "rusty", "sharp", "shiny", "silent"),
    *("silver", "simple", "sleepy", "slow", "small", "smooth", "soft", "solid", "steady", "still"),
    *("strong", "sunny", "sweet", "swift", "tall", "tame", "tidy", "tiny", "velvet", "warm"),
    *("white", "wide", "wild", "wise", "wooden", "yellow", "young", "zesty"),
)

NOUNS = (
    *("anchor", "apple", "arrow", "badger", "barrel", "basket", "beacon", "bell", "berry", "boat"),
    *("bottle", "bridge", "brook", "bucket", "button", "cabin", "camel", "candle", "canoe"),
    *("castle", "cedar", "chair", "cherry", "cloud", "clover", "comet", "coral", "cradle"),
    *("crane", "crow", "crystal", "daisy", "deer", "desert", "dove", "dragon", "drum", "eagle"),
    *("ember", "falcon", "feather", "fern", "field", "flute", "forest", "fountain", "fox"),
    *("garden", "glacier", "glove", "goose", "grape", "hammer", "harbor", "harp", "hawk"),
    *("hazel", "heron", "hill", "honey", "horse", "island", "ivory", "jacket", "jungle", "kettle"),
    *("kite", "ladder", "lake", "lamp", "lantern", "leaf", "lemon", "lily", "lion", "lizard"),
    *("maple", "marble", "meadow", "melon", "mirror", "moon", "mountain", "needle", "nest"),
    *("oak", "ocean", "olive", "orchard", "otter", "owl", "paddle", "panda", "pearl", "pebble"),
    *("pepper", "piano", "pigeon", "pillow", "pine", "planet", "pocket", "pond", "poppy"),
    *("rabbit", "raven", "ribbon", "river", "robin", "rocket", "rose", "saddle", "sailor"),
    *("salmon", "shadow", "shell", "shield", "sparrow", "spider", "spoon", "spring", "squirrel"),
    *("star", "stone", "storm", "swan", "table", "temple", "thunder", "tiger", "tower", "trumpet"),
    *("tulip", "turtle", "valley", "violin", "wagon", "walnut", "whale", "willow", "window"),
    *("winter", "wolf", "zebra"),
)

NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate"),
    *("Leo", "Maria", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Zoe"),
    *("Alice", "Bruno", "Chen", "Diego", "Elena", "Frank", "Hana", "Ivan", "Julia", "Kofi"),
    *("Lena", "Marco", "Nina", "Oscar", "Priya", "Ravi", "Sara", "Tom", "Yuki", "Omar"),
)

CITIES = (
    *("Paris", "London", "Berlin", "Rome", "Madrid", "Tokyo", "Beijing", "Cairo", "Oslo", "Vienna"),
    *("Lisbon", "Athens", "Dublin", "Prague", "Warsaw", "Ottawa", "Lima", "Nairobi", "Delhi"),
    *("New York", "San Francisco", "Boston", "Chicago", "Seattle", "Toronto", "Sydney", "Shanghai"),
    *("Munich", "Milan", "Geneva", "Zurich", "Barcelona", "Moscow", "Istanbul", "Mumbai", "Seoul"),
    *("Bangkok", "Hanoi", "Jakarta", "Singapore", "Dubai", "Stockholm", "Helsinki", "Copenhagen"),
    *("Amsterdam", "Brussels", "Budapest", "Denver", "Miami", "Austin", "Dallas", "Hamburg"),
    *("Shenzhen", "Hangzhou", "Osaka", "Kyoto", "Venice", "Naples", "Lyon", "Porto"),
)

CHINESE_CITIES = (
    *("上海", "北京", "广州", "深圳", "杭州", "南京", "成都", "武汉", "西安", "重庆", "天津"),
    *("苏州", "青岛", "大连", "厦门", "长沙", "昆明", "沈阳", "哈尔滨", "济南", "郑州", "福州"),
    *("合肥", "南昌", "贵阳", "兰州", "海口", "拉萨", "香港", "台北", "东京", "巴黎", "伦敦"),
    *("纽约", "柏林", "罗马", "首尔", "莫斯科", "悉尼", "新加坡", "马德里"),
)

# Taught only: where a name of more than two characters ends.
LONG_CHINESE_CITIES = (
    *("石家庄", "哈尔滨", "连云港", "秦皇岛", "张家口", "牡丹江", "景德镇", "攀枝花"),
    *("莫斯科", "马德里", "慕尼黑", "呼和浩特", "乌鲁木齐", "曼彻斯特", "布达佩斯", "墨西哥城"),
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "purple", "orange")
LANGUAGES = ("English", "French", "German", "Spanish", "Italian", "Chinese", "Japanese", "Arabic")
FOODS = ("pizza", "bread", "soup", "rice", "salad", "cake", "cheese", "tea", "coffee", "juice")
