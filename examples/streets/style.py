"""What makes up a domain: its streets, their light, and the camera."""

from __future__ import annotations

from dataclasses import dataclass

from examples.streets.canvas import Color

__all__ = ["Colors", "Style"]

Range = tuple[float, float]
Colors = tuple[Color, ...]


@dataclass(frozen=True)
class Style:
    """Everything in which one domain differs from another.

    A range (low, high) is drawn from uniformly for every picture or object; a probability is named
    ``..._chance`` and is a picture's, or an object's where the comment says so; ``..._every`` is
    the mean distance between two in metres.
    """

    name: str
    # Camera
    focal: Range  # in picture widths
    horizon: Range  # in picture heights
    camera_height: Range
    swing: float  # largest sideways shift of the vanishing point, in picture widths
    hood: bool  # whether the own car's bonnet shows (ignored in the labels)
    # Road
    lanes: tuple[int, ...]  # a direction
    lane_width: Range
    parking_chance: float  # a side
    sidewalk: Range
    verge_chance: float  # grass between kerb and sidewalk, a side
    median_chance: float
    center_line: Color
    asphalt: Color
    asphalt_spread: float
    paving: Color
    grass: Color
    crossing_every: float
    bend: float  # largest curvature, 1/m
    # What stands along it
    plots: dict[str, float]  # kind of plot -> weight
    setback: Range
    building_height: Range
    building_length: Range
    facades: Colors
    glass_chance: float  # a building
    roof_chance: float  # a building
    shop_chance: float  # a building
    roofs: Colors
    trees_every: float
    palm_chance: float  # a tree
    tree_height: Range
    leaves: Colors
    lamps_every: float
    signs_every: float
    bollard_chance: float
    mast_lights: bool  # traffic lights hang over the road
    # Traffic
    parked_chance: float  # a place
    cars_every: float
    people_every: float
    bikes_every: float
    bus_chance: float
    truck_chance: float
    train_chance: float
    paints: Colors
    clothes: Colors
    # Sky and light
    sky_top: Color
    sky_low: Color
    clouds: Range
    cloud_color: Color
    sun_strength: Range
    ambient: Range
    sun_height: Range  # degrees
    shadow: float
    visibility: Range
    # The sensor
    texture: float
    noise: float
    blur: float
    contrast: float
    saturation: float
    gain: Range
    tint: Color
    vignette: float
    headlights: float = 0  # how much brighter the road in front of the own car is
