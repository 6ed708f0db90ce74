"""Draws who imports whom in a checkout: `python docs/draw_imports.py CHECKOUT PICTURE.png`.

A room is a folder, or a file that lies beside the folders. An arc to the right is an import of a
room further down, one to the left (red) an import back up; its width grows with the files that do.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import grimp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc

PACKAGES = ("comal_fast", "comal_kernels", "bench")
DOWN, UP = "#2563eb", "#dc2626"
Arrows = Counter[tuple[str, str]]  # (importer, imported): modules of the one that import the other


def main(checkout: str, picture: str) -> None:
    """Read the checkout's three packages, and draw a panel for each."""
    root = Path(checkout).resolve()
    sys.path[:0] = [str(root), str(root / "kernels")]
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    for axes, package in zip(figure.subplots(1, len(PACKAGES)), PACKAGES, strict=True):
        arrows = between_rooms(graph, package)
        draw(axes, package, in_order(arrows), arrows)
    figure.savefig(picture, dpi=110)


def between_rooms(graph: grimp.ImportGraph, package: str) -> Arrows:
    """The imports between the rooms of a package."""
    inside = graph.find_descendants(package)
    folders = {m for m in inside if graph.find_children(m)}

    def room(module: str) -> str:
        name = module.removeprefix(f"{package}.")
        if module in folders:
            return name.replace(".", "/") + "/"
        parent = name.rpartition(".")[0]
        return parent.replace(".", "/") + "/" if parent else name

    arrows: Arrows = Counter()
    for module in inside:
        imported = {room(m) for m in graph.find_modules_directly_imported_by(module) & inside}
        arrows.update((room(module), other) for other in imported - {room(module)})
    return arrows


def in_order(arrows: Arrows) -> list[str]:
    """The rooms from top to bottom, with as few imports back up as single moves can reach."""
    left = sorted({room for arrow in arrows for room in arrow})
    weight = {r: {s: arrows[r, s] - arrows[s, r] for s in left} for r in left}
    rooms: list[str] = []
    while left:  # whom the fewest of the others import comes next: nobody, where there is no circle
        following = min(left, key=lambda room: sum(arrows[other, room] for other in left))
        rooms.append(following)
        left.remove(following)
    moved = True
    while moved:
        moved = False
        for room in list(rooms):
            at = rooms.index(room)
            rest = rooms[:at] + rooms[at + 1 :]
            # imports that point down, with this room before rest[k]
            gains = [0, *itertools.accumulate(-weight[room][other] for other in rest)]
            best = max(range(len(gains)), key=gains.__getitem__)
            if gains[best] > gains[at]:
                rooms, moved = [*rest[:best], room, *rest[best:]], True
    return rooms


def draw(axes: Axes, package: str, rooms: Sequence[str], arrows: Arrows) -> None:
    """The rooms one below the other, and their imports as arcs."""
    place = {room: -i for i, room in enumerate(rooms)}
    back = 0
    for (importer, imported), files in arrows.items():
        span = abs(place[importer] - place[imported])
        up = place[imported] > place[importer]
        back += up
        middle = (place[importer] + place[imported]) / 2
        x, angles = (-0.2, (90, 270)) if up else (8.2, (-90, 90))
        colour, alpha = (UP, 0.9) if up else (DOWN, 0.3)
        width = 0.5 + 0.35 * min(files, 8)
        axes.add_patch(
            Arc((x, middle), 0.62 * span, span, theta1=angles[0], theta2=angles[1], lw=width,
                color=colour, alpha=alpha)
        )  # fmt: skip
    for room, y in place.items():
        axes.text(4, y, room, ha="center", va="center", fontsize=9.5)
    longest = len(rooms)
    axes.set_xlim(-0.35 * longest - 0.6, 8.6 + 0.35 * longest)
    axes.set_ylim(-longest, 1)
    axes.axis("off")
    title = f"{package}: {len(rooms)} rooms, {len(arrows)} arrows, {back} back up"
    axes.set_title(title, fontsize=11, fontweight="bold")


if __name__ == "__main__":
    main(*sys.argv[1:])
