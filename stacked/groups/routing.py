"""Which adapter a name means, as one immutable snapshot that is replaced whole.

A request resolves its names once, in one snapshot, and keeps the route it got.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from stacked.config import Design, ExperimentConfig, UnitKind
from stacked.core import MAX_KEY_LENGTH, Base, Digest, Member, ModelFiles, ModelId, check_key, short
from stacked.errors import (
    KeyConflict,
    KeyInUse,
    KeyMissing,
    KeyRemoved,
    KeyUnknown,
    ModelQuarantined,
)
from stacked.experiments.assignment import Arm, Exposure, Split

H = TypeVar("H")

NO_DESIGN = Design()

UnitOf = Callable[[UnitKind], str | None]
"""The unit of a request for experiments on units of this kind, if it has one."""


class Route(NamedTuple, Generic[H]):
    """Where one name leads. `handle` is the engine's adapter; None means the base.

    A tuple, because a table of 500 is made between two requests.
    """

    label: str
    """The model's name in answers: its key, or its model id if it has none."""
    key: str | None
    model_id: ModelId
    digest: Digest | None
    handle: H | None
    generation: int
    member: Member | None = None
    """Its member in the group; None for the base."""
    exposure: Exposure | None = None
    """Set if the name is an experiment's, whose arm this is."""
    cards: tuple[int, ...] = ()
    """The GPUs that it is pinned to; () for all."""

    @property
    def labels(self) -> tuple[str, str]:
        """The labels of metrics: the key that was used, and the content it got."""
        return self.label, short(self.digest) if self.digest else "base"


class Arms(NamedTuple, Generic[H]):
    """One experiment on what is served: the route of each arm, by the arm's key."""

    split: Split
    routes: Mapping[str, Route[H]]

    @classmethod
    def of(
        cls, experiment: ExperimentConfig, names: Mapping[str, Route[H]], base: Base | None
    ) -> Arms[H] | None:
        """The arms that are served; None if there are none."""
        served = {arm.key: names[arm.key] for arm in experiment.arms if arm.key in names}
        if not served:
            return None
        # An adapter on another base is another model.
        of_base = base.digest if base is not None else ""
        digests = {key: f"{of_base} {route.digest}" for key, route in served.items()}
        split, name = Split(experiment, digests), experiment.key
        exposed = {key: Exposure(name, split.phase, key, None) for key in served}
        routes = {
            key: route._replace(label=name, key=name, exposure=exposed[key])
            for key, route in served.items()
        }
        return cls(split, routes)

    @property
    def first(self) -> Route[H]:
        """Of the first arm that is served: stands for all until an arm is drawn."""
        return next(iter(self.routes.values()))

    @property
    def facts(self) -> tuple[Arm, ...]:
        """What its phase is of; the first arm is the one that others are compared with."""
        shares = self.split.shares.items()
        return tuple(Arm(key, share, self.routes[key].digest or "base") for key, share in shares)

    def draw(self, unit: UnitOf) -> Route[H]:
        """The route of a unit's arm, or of one by chance."""
        value = unit(self.split.experiment.unit)
        route = self.routes[self.split.arm(value)]
        if value is None or route.exposure is None:
            return route
        return route._replace(exposure=route.exposure._replace(unit=self.split.pseudonym(value)))


@dataclass(frozen=True, slots=True)
class Routing(Generic[H]):
    """One generation of the routing table. Build with `of`; change by `with_…`, which copy."""

    base: Base | None
    """The route of a request without a name; None if there is none."""
    members: tuple[Member, ...]
    handles: Mapping[Digest, H]
    generation: int = 1
    draining: frozenset[str] = frozenset()
    withheld: Mapping[str, str] = field(default_factory=dict)
    """Names of quarantined members, and why each is not served."""
    design: Design = NO_DESIGN
    """The experiments and shadow traffic of the group."""
    arms: Mapping[str, Arms[H]] = field(default_factory=dict, repr=False)
    """The experiments of which an arm is served, by their keys."""
    _names: Mapping[str, Route[H]] = field(default_factory=dict, repr=False)
    _seen: dict[frozenset[str], Routing[H]] = field(default_factory=dict, repr=False, compare=False)
    """What callers held to some keys see: one for each set of keys, made when it is needed."""

    @classmethod
    def of(
        cls,
        base: Base | None,
        members: tuple[Member, ...],
        handles: Mapping[Digest, H],
        generation: int = 1,
        draining: frozenset[str] = frozenset(),
        withheld: Mapping[str, str] = MappingProxyType({}),
        design: Design = NO_DESIGN,
        arms: Mapping[str, Arms[H]] | None = None,
    ) -> Routing[H]:
        """`arms`: of these members where they are not the whole group."""
        names: dict[str, Route[H]] = {}
        for member in members:
            digest = member.content.digest
            route = Route(
                label=member.label,
                key=member.key,
                model_id=member.model_id,
                digest=digest,
                handle=handles[digest],
                generation=generation,
                member=member,
                cards=design.gpus.get(member.key or "", ()),
            )
            if member.key is not None:
                names[member.key] = route
            # A model with two keys has its first label when it is requested by id.
            names.setdefault(member.model_id, route)
        if base is not None:
            to_base: Route[H] = Route(base.key, base.key, base.model_id, None, None, generation)
            to_base = to_base._replace(cards=design.gpus.get(base.key, ()))
            names[base.key] = names[base.model_id] = to_base
        if arms is None:
            made = ((one.key, Arms.of(one, names, base)) for one in design.experiments)
            arms = {key: each for key, each in made if each is not None}
        names |= {key: each.first for key, each in arms.items()}
        whys = {
            one.key: withheld[arm.key]
            for one in design.experiments
            for arm in one.arms
            if arm.key in withheld
        }
        return cls(
            base=base,
            members=members,
            handles=MappingProxyType(dict(handles)),
            generation=generation,
            draining=draining - names.keys(),
            withheld={n: why for n, why in {**whys, **withheld}.items() if n not in names},
            design=design,
            arms=arms,
            _names=MappingProxyType(names),
        )

    def resolve(self, name: str | None) -> Route[H]:
        """The route of an inference key or model id; None is the base.

        Raises KeyMissing for None without a base, KeyUnknown (KeyRemoved while old requests
        finish), ModelQuarantined, KeyTooLong or KeyInvalid: never the base for an unknown name.
        """
        if name is None:
            if self.base is None:
                raise KeyMissing(
                    "the request names no model, and there is no base that is meant then; send an "
                    f"inference key; {self._listed}"
                )
            return self._names[self.base.key]
        route = self._names.get(name)
        if route is not None:
            return route
        if name in self.withheld:
            raise ModelQuarantined(f"model {name!r} is not served: {self.withheld[name]}")
        if name in self.draining:
            raise KeyRemoved(f"model {name!r} was removed; {self._listed}")
        if name in self.design.keys:
            raise KeyRemoved(f"no arm of experiment {name!r} is served; {self._listed}")
        if not name.startswith("ocid1.") and len(name) > MAX_KEY_LENGTH:
            check_key(name)
        raise KeyUnknown(f"no model is served under {name[:255]!r}; {self._listed}")

    @property
    def _listed(self) -> str:
        member = next((route.member for route in self if route.member is not None), None)
        tensors = member is not None and isinstance(member.content, ModelFiles)
        return f"GET /{'v2' if tensors else 'v1'}/models lists the inference keys"

    def resolve_all(self, names: Mapping[str, str]) -> Route[H]:
        """The one route that every named place of a request leads to: place -> name.

        Raises KeyConflict when two places name different models, and what `resolve` raises.
        """
        routes = {place: self.resolve(name) for place, name in names.items()}
        models = {route.exposure or route.model_id for route in routes.values()}
        if len(models) > 1:
            named = " and ".join(f"{place} {names[place]!r}" for place in routes)
            raise KeyConflict(f"{named} name different models; send one of them")
        if not routes:
            return self.resolve(None)
        # A key says more than an id: two keys of one model are one model, called by the key used.
        return max(routes.values(), key=lambda route: route.key is not None)

    def seen_by(self, keys: frozenset[str] | None) -> Routing[H]:
        """The table as for a caller who may use these keys and model ids; None: all.

        For that caller nothing else exists: what is not in it is unknown, or was never there.
        """
        if keys is None:
            return self
        if (seen := self._seen.get(keys)) is None:
            base = self.base if self.base and keys & {self.base.key, self.base.model_id} else None
            members = tuple(m for m in self.members if m.key in keys or m.model_id in keys)
            gone = self.draining & keys
            withheld = {name: why for name, why in self.withheld.items() if name in keys}
            arms = {key: each for key, each in self.arms.items() if key in keys}
            design = self.design.seen_by(keys)
            seen = self._changed(
                base=base,
                members=members,
                draining=gone,
                withheld=withheld,
                design=design,
                arms=arms,
            )
            self._seen[keys] = seen
        return seen

    def __iter__(self) -> Iterator[Route[H]]:
        """Every served model, once per name: the base, members, and experiments by one arm."""
        if self.base is not None:
            yield self._names[self.base.key]
        for member in self.members:
            yield self._names[member.label]
        for key in self.arms:
            yield self._names[key]

    def with_member(self, member: Member, handle: H) -> Routing[H]:
        """The next generation, with one more member. Raises KeyInUse when its name is taken."""
        for name in (member.key, None if member.key else member.model_id):
            if name in self._names or name in self.design.keys:
                raise KeyInUse(f"{name!r} is already served; remove it first or use another key")
        handles = {**self.handles, member.content.digest: handle}
        members = (*self.members, member)
        return self._changed(members=members, handles=handles, generation=self.generation + 1)

    def without(self, name: str) -> tuple[Routing[H], tuple[Member, ...]]:
        """The next generation without the members that `name` (a key or model id) means.

        A model id removes the model under all of its keys; a key removes that key alone. The
        removed names answer KeyRemoved until `settled`. Raises KeyUnknown.
        """
        route = self.resolve(name)
        if route.exposure is not None:
            raise KeyInUse(f"{name!r} is an experiment; remove its arms, or update the group")
        if route.handle is None:
            raise KeyInUse(f"{name!r} is the base; it cannot be removed")
        gone = tuple(m for m in self.members if name in (m.key, m.model_id))
        kept = tuple(m for m in self.members if m not in gone)
        used = {m.content.digest for m in kept}
        names = {n for m in gone for n in (m.key, m.model_id) if n is not None}
        handles = {digest: handle for digest, handle in self.handles.items() if digest in used}
        after = self._changed(
            members=kept,
            handles=handles,
            generation=self.generation + 1,
            draining=self.draining | names,
        )
        return after, gone

    def withholding(self, digest: Digest, why: str) -> Routing[H]:
        """The same generation, the members of this content quarantined."""
        gone = [m for m in self.members if m.content.digest == digest]
        return self._changed(
            members=tuple(m for m in self.members if m not in gone),
            handles={other: handle for other, handle in self.handles.items() if other != digest},
            withheld={**self.withheld, **{n: why for m in gone for n in (m.key, m.model_id) if n}},
        )

    def settled(self, names: frozenset[str]) -> Routing[H]:
        """The same generation, its `names` no longer draining but unknown."""
        return self._changed(draining=self.draining - names)

    def numbered(self, generation: int) -> Routing[H]:
        """The same as another generation."""
        return self._changed(generation=generation)

    def _changed(self, **parts: Any) -> Routing[H]:
        """The same with other parts, as `of` takes them."""
        mine = {name: getattr(self, name) for name in _PARTS}
        return Routing.of(**{**mine, **parts})


_PARTS = ("base", "members", "handles", "generation", "draining", "withheld", "design")
