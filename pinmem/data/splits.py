"""Which numbered file of GTAV and of SYNTHIA RAND-CITYSCAPES belongs to which split.

Both datasets come with all their images in one folder. These are the splits that the
domain-generalisation literature trains and reports on (RobustNet, CVPR 2021, and after it Pin the
Memory, CVPR 2022): for GTAV 12388 / 6382 / 6181 of 24966, for SYNTHIA 6580 / 2820 of 9400. They
leave out 15 images of GTAV's own train split (12160, 12166, ...).
"""

from __future__ import annotations

import zlib
from base64 import b64decode
from functools import cache

__all__ = ["STANDARD_SPLITS", "standard_split"]

# One byte a file number: 0 in no split, then the position in _SPLITS + 1; deflated, base64.
_SPLITS = ("train", "val", "test")
_PACKED = {
    "gtav": (
        "eNrtXIuW4yAIrfL//7ydTSaNCSJvbaec2Z5uEw3yuCBqHuUg+KHta631+fH/p9f1Wref98/tUt1+ft5YyyJUcYKN"
        "ChyEtvxtXn7+6EfsojhJ7/oEjPa2bOblAiBGeFHpvVXLxZ3vK2vdB+Gc9x5+ZUBFOKOg67feZXC9higXVeFg3CfB"
        "gFLPyBBhQBYhd1hhsKikc0dVRBQi4I7GvQ+1F4a45X2bwMBILOVkPU2o9k8nuRfxW08biv+wiei1jm4y9CAHzjcz"
        "+5pBuyj1HLjlOxqVmzpSDNjZStk+Jk6mNF7s4nS5bh3gCx1GhPichrf9ZqvIsfg5qUgVhWPWA0ibHUNHs9wp0T4p"
        "vo59UkG2vESV5NgdJVX7YUkbhBDTtSloZluJman2GoQ4jAmio3E+PrBE1Yn8UC5IwtODOXhDwd8qf1h0Kp3AgCt0"
        "s+7LDxjrVT/GXC1TXGGnHbyg5zCm/XtebYebEXDh0yAFarSDx25Lf68FLIawmz6cEuWBoHsLbO3w5pY47ZbXlYYo"
        "DjM1IUQEXF0BYIN3AZKmoqmduqDuT55xpK5MnzOS6csI8Dkktp9KxIM3qSlH61lvVTpTbIbl6xHTV20N5uIog4JX"
        "iOD+38JxNGgAmVsIhbtGlAOitd0mgWdRctb4Kd/x0SwmWhi02D588HJ25JyyeOf9rNj4ZdPLUiErJxdzhvn3SufW"
        "22UyM00vX5poCwH6eWyfj97l55XH8fWHyOX+nDQwPXAuFrR5swxYCcSULYna2ZQC+5e+9G5LjevH+hkDgQkIt0RN"
        "L5U1uTzIyYcth3arhgy77UrCYxN0pOfmnBbwtS/OmcePoRIBzFgS/5mrJXr3mLcIYS2HJSksP92Yn98EHF1wOaEw"
        "PBHsKJmwLIHJo9Ph2xVqXe7V8en7IJwlA64sRth0qrh9zZr7IGW0GBt6BujKzMFLvR7q1J6p2F6REp7HhATNriVF"
        "4M4bLX90rWGcS6rVyxS0U5BQKWPCbp8AJMjMTjK24rvyJrE1P/nJe7pqety8sY/O+CxK9TENWRdmR5yyq1HCw1iA"
        "+RWPmCTK1qXc/R/MvsVFZ2wPzUk1tEa7Vwq1zV+oodvgCAtD5IP2hs+nJhznw61DvHzTirNjDM1KsmaqglVfW84O"
        "OVmBhzZzim1lziHQbdZsP6B/9UvhVlrqBXLfIcvCpC7pJCNgmBjpFbtfHLuNe81PkCb0BwTJGZD8moly7ZkdeiPL"
        "iPa8QDsBYmVmrJOUbdw4wu72j79eu4fsQrNy22KblaGhcd5vL8JVkG03I/tRjkYuodpUskr7itynMvDX3hb90ofC"
        "hlUZI8sFDabDqNQw5yuFLC7+hp+K6ixq4XF4n/NDcYDkebcCh+PTkCrKVcng4D0bz9hokFLMYuO/xzmT4QuAySA7"
        "ZFINlTbFWtE6tJYq7rc77TuF+V48u6W7Xl5RBC+1lCc212vuBXgReHeAVTIcj0zHC8dIg5N56j/J3Kqw"
    ),
    "synthia": (
        "eNp9mgmy3DgMQ4vv/oeemu+2hIXOVGrSabuthSQIQGYG5vnvfvj78/8Xz1/PB547ns/vhfPp/Oi9cL4+3z4P4jyF"
        "c9Pc0eB+zX0gv/+h85ypmb+f0HW8Y9+p/f2LO1NstaOTv0/KqT2L0WmMjn6+qWlg1575y4VcPWM77is/q/fN4s7i"
        "fCQ25bcld1dlUO4WxgLvroHH4n3YL1uIXxMLvYMzsTbumiwrbia+F29ochQN+Qy1c5biM56Ltm22VffhY3EE8tkT"
        "mbU8GY0KOptTavobz8eetm95Dqvjai08A/MWNudWNA/eEow0JZLlxE0Kyh+p89YEnDmTyC1qmNDvNP1vRkgFv6Xr"
        "o2nq43HCikfnsyADWOXLPh2YY7T+HG+roIkhtJIUq7kzmJjCyadIcEfcd7sdG7SefoNQibzAwy0nNGrv82bDHjRu"
        "ue5M27cmIhiRBgJhGAg6KHphOCDZNARwxrEaH+2mIRFiopPMRTQmIqIJJ/DnIdQmiKeG/YTuzL4JYMGq5jW1a9TW"
        "6Yje/t60zEVOIpvCF0v1yg2yadzKVnoi6bbUFmN55liIoQ0UQkGvMumOd8rsbDefsKyODHmxXgtQ5pQNRgE1mQ+6"
        "hVQr37r7G1NOhD1YSc04cHN7SAAWC1W7eOxtZWluaAce3ymtd7IZ6oYw2bo3KCYo61TlCngGHyxYIrlZtn8k6xUn"
        "kgxO8EHwvpeT1WwlyEz3SUez4PaGTPEcVBFAaYhk1E76MVUgDIfERHLimuzWcfCCPCAifYfMMXypkeCD32ekUsOF"
        "1ALd3ZMAseiXyk8WJChswXt/0D+2RonwsWiLBETRyia5hCghFtFgBIp/cB7BOpxiJzYre4aioyEkcIlICsu7Zq0L"
        "ivV5xmSMo0WYPFF+kGrl5mWx+SnmdCZaqR5ALlF0smrwHITckDQptWTO1lE8aqZfomRYpNoUSZBokHMa7vqyx5BQ"
        "wQXZVSAZYLrALYGhCMWm1G3HDe5wyC8hYPqEBSRmE//rvlVUcDAAbwity3K+hrDJiBfLB9lNNYyqGxo8Y7qY8AQ8"
        "YtFHmO5QNBpcJ8FbGmqDKLwRv59UF5tQhKQhksR0Iw6FyKyCptuH5Y3TH23JSahCnU+huRtyu5OiCOiMkoYT0cOR"
        "PgYuqcKIdIwGyXax9FRZM5CGURYyq4W4dGg+TYJ2tXAlm7KqfY6u71J3s7btIFyHCCOajKZzJsqwBLcuD3g5kwJZ"
        "W+EquacIwWJv4gEWgknI+8RkdZqTaVkrS/ciZfvAkgI+cZatc57qIhzH+7Z4M6gkDSAlHBJgbIiE+aSHhJEV8yZS"
        "kDJoW2mDoqumpZnd1a3joKDIdyaFoUP742xacdilWHuBLae87Pl4iHpxN2OBNDMxq9UcX2DxECZcH1IcYJlr/WM7"
        "WKjjl7N6Fr8HFbTBQVUKRl1OdPHMwiQson9P47Bf0IbF1gYWTwVWM3fzy8smiqY3cXSzumM4Oel0Ug15eHmpwuy9"
        "lHLUByf2jJvvfFo/k+5GdzQWt/tDfxiXVntHuOAm0yLO5CkDFMikAeszYvcts+WlKvN1JhhhByQOkea/kO0k3M5G"
        "Tj3pmsXBKzmoenk7yLXzWtq8SbEuIF1WXZ3JzHq4hTqpcY4VM/fjAuePLAdL82nK2GlW0FpcvOEwRHh86Xi7eCeJ"
        "ZDFMsP3bbMc8Oqc95GjuiweRFkb4OdDef5C7TTt9E7gEgjYMd7bn2Z9GymJ9cEGRzdbcBBhJ2tmPFlIMrr11d6Br"
        "79ZXHypBWQ5SiGiznHsLLTDRu1VtGhrE2Zk51fUChdzAh80nTCas0+1ViXJiNqRgVnFHeu1x3o8fjy8WpZTs4hY4"
        "WjRpUjZWfZLw55cD9kmvbexllxJodSyaGBXATuQrbU5sZ3k7K9mvGgWkDvXWNw8mFVgd2aMcGH8fRF4LyqdSx6d/"
        "9/wH0bIvvQ=="
    ),
}

STANDARD_SPLITS = tuple(_PACKED)


@cache
def standard_split(dataset: str, split: str) -> frozenset[int]:
    """The file numbers of a split (``train``, ``val``, ``test``) of ``gtav`` or ``synthia``."""
    member = _SPLITS.index(split) + 1
    owners = zlib.decompress(b64decode(_PACKED[dataset]))
    return frozenset(number for number, owner in enumerate(owners) if owner == member)
