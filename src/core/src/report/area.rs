//! Nodes taken together: what their GPUs can form when they are empty, and what they can still form.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::form::Form;
use super::input::World;
use crate::engine::kinds::Kind;
use crate::engine::repack;
use crate::engine::table::State;
use crate::geometry::Model;
use crate::id::NodeName;
use crate::ledger::Ledger;
use crate::ledger::load::Load;
use crate::node::Node;
use crate::profile::ProfileName;
use crate::resources::Resources;
use crate::time::Timestamp;

/// Whether quotas can be had together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Together {
    /// All of them at the same time.
    Yes,
    /// That cannot be said: models that differ offer the same profile, or media engines decide.
    Unknown,
    /// Not at the same time.
    No,
}

/// Everything about the GPUs of all nodes that areas are made of.
pub struct Ground<'a> {
    kinds: Vec<(Arc<Kind>, Form)>,
    rooms: BTreeMap<&'a NodeName, Room>,
}

/// The GPUs of a node.
struct Room {
    /// Whether anything new can be placed there.
    in_service: bool,
    /// How many by kind, state, and whether something is there that is nobody's to move.
    cards: BTreeMap<(usize, State, bool), u64>,
    /// What those without have to hold.
    loads: Vec<(usize, Load)>,
}

impl<'a> Ground<'a> {
    /// Looks at all nodes.
    pub fn survey(now: Timestamp, world: &'a World) -> Self {
        let mut ground = Self { kinds: Vec::new(), rooms: BTreeMap::new() };
        for node in world.nodes.values() {
            let Some(mig) = &node.mig else { continue };
            // What is in whose hands makes no difference to what has to stay where it is.
            let (free, heirs) = (Resources::default(), Arc::default());
            let book = Ledger::open(now, &node.name, mig, &world.kinds, free, &[], &heirs);
            let mut cards = BTreeMap::new();
            for (kind, state, strange) in book.cards() {
                *cards.entry((ground.kind(kind), state, strange)).or_default() += 1;
            }
            let loads = book.loads(false).into_iter().map(|load| (ground.kind(load.kind.clone()), load));
            let loads = loads.collect();
            ground.rooms.insert(&node.name, Room { in_service: in_service(node), cards, loads });
        }
        ground
    }

    fn kind(&mut self, kind: Arc<Kind>) -> usize {
        self.kinds.iter().position(|(known, _)| Arc::ptr_eq(known, &kind) || *known == kind).unwrap_or_else(
            || {
                let form = Form::new(&kind.table);
                self.kinds.push((kind, form));
                self.kinds.len() - 1
            },
        )
    }

    /// These nodes taken together.
    pub fn area(&self, nodes: &BTreeSet<&NodeName>) -> Area<'_> {
        let mut area = Area {
            ground: self,
            cards: vec![0; self.kinds.len()],
            states: BTreeMap::new(),
            stuck: BTreeMap::new(),
            loads: BTreeMap::new(),
        };
        for room in nodes.iter().filter_map(|name| self.rooms.get(name)) {
            for (&(kind, state, strange), count) in &room.cards {
                area.cards[kind] += count;
                if room.in_service {
                    *area.states.entry((kind, state)).or_default() += count;
                    if strange {
                        *area.stuck.entry((kind, state)).or_default() += count;
                    }
                }
            }
            for (kind, load) in room.loads.iter().filter(|_| room.in_service) {
                let (gpus, slices) =
                    area.loads.entry(*kind).or_insert_with(|| (0, vec![0; load.slices.len()]));
                *gpus += load.gpus;
                slices.iter_mut().zip(&load.slices).for_each(|(all, more)| *all += more);
            }
        }
        area
    }

    /// The nodes that have usable GPUs.
    pub fn with_gpus(&self) -> impl Iterator<Item = &'a NodeName> + '_ {
        self.rooms.iter().filter(|(_, room)| !room.cards.is_empty()).map(|(name, _)| *name)
    }
}

/// Whether a node takes new pods, as far as that is no matter of theirs.
fn in_service(node: &Node) -> bool {
    let host = node.host.as_ref().is_some_and(|host| host.ready && !host.traits.unschedulable);
    host && node.mig.as_ref().is_some_and(|mig| mig.ready)
}

/// GPUs taken together.
pub struct Area<'a> {
    ground: &'a Ground<'a>,
    /// GPUs by kind.
    cards: Vec<u64>,
    /// GPUs in service by kind and state.
    states: BTreeMap<(usize, State), u64>,
    /// Of them, those with something that is nobody's to move.
    stuck: BTreeMap<(usize, State), u64>,
    /// The others by kind: how many, and what they have to hold.
    loads: BTreeMap<usize, (u32, Vec<u32>)>,
}

impl Area<'_> {
    /// The models there are, with how many GPUs.
    pub fn models(&self) -> BTreeMap<Arc<str>, u64> {
        let mut models = BTreeMap::new();
        for (kind, cards) in self.kinds() {
            *models.entry(kind.table.model().name.clone()).or_default() += cards;
        }
        models
    }

    /// The profiles that its GPUs offer and that can be asked for, with placement units of a slice: the most of all models.
    pub fn offers(&self) -> BTreeMap<ProfileName, u32> {
        let mut offers: BTreeMap<ProfileName, u32> = BTreeMap::new();
        for profile in self.kinds().flat_map(|(kind, _)| &kind.table.model().profiles) {
            if profile.name.memory_gib().is_some() {
                let units = offers.entry(profile.name.clone()).or_default();
                *units = (*units).max(profile.size.into());
            }
        }
        offers
    }

    /// How many slices of a profile its GPUs can form when there is nothing else on them.
    pub fn possible(&self, profile: &ProfileName) -> u64 {
        let of = |(i, cards): (usize, &u64)| {
            let (kind, form) = &self.ground.kinds[i];
            let slices = kind.table.profile(profile).map_or(0, |p| form.slices(p, kind.table.empty()));
            slices * cards
        };
        self.cards.iter().enumerate().map(of).sum()
    }

    /// How many GiB its GPUs can form when there is nothing else on them.
    pub fn possible_gib(&self) -> u64 {
        let of = |(i, cards): (usize, &u64)| {
            let (kind, form) = &self.ground.kinds[i];
            form.gib(kind.table.empty()) * cards
        };
        self.cards.iter().enumerate().map(of).sum()
    }

    /// Placement units of its GPUs.
    pub fn units(&self) -> u64 {
        self.kinds().map(|(kind, cards)| u64::from(kind.table.model().units) * cards).sum()
    }

    /// Placement units of its GPUs in service on which nothing has to be.
    pub fn free_units(&self) -> u64 {
        self.sum(&self.states, |kind, _, state| kind.table.free(state).into())
    }

    /// How many GiB can still be formed with nothing moved.
    pub fn free_gib(&self) -> u64 {
        self.sum(&self.states, |_, form, state| form.gib(state))
    }

    /// How many slices of a profile can still be formed with nothing moved.
    pub fn free_as_it_is(&self, profile: &ProfileName) -> u64 {
        self.still(&self.states, profile)
    }

    /// How many slices of a profile could still be formed if everything on GPUs without strange things were moved at will;
    /// `None` where the engine cannot tell.
    pub fn free(&self, profile: &ProfileName) -> Option<u64> {
        let mut free = self.still(&self.stuck, profile);
        for (i, (gpus, slices)) in &self.loads {
            let (kind, form) = &self.ground.kinds[*i];
            let Some(p) = kind.table.profile(profile) else { continue };
            let of_kind = |states: &BTreeMap<(usize, State), u64>| -> u64 {
                let here = states.iter().filter(|((kind, _), _)| kind == i);
                here.map(|((_, state), cards)| form.slices(p, *state) * cards).sum()
            };
            // As many as fit with nothing moved need no test, which may not be able to tell.
            let least = of_kind(&self.states) - of_kind(&self.stuck);
            let most = form.slices(p, kind.table.empty()) * u64::from(*gpus);
            let capped = |n: u64| u32::try_from(n).unwrap_or(u32::MAX - 1);
            free += u64::from(more(kind.table.model(), slices, *gpus, p, capped(least)..=capped(most))?);
        }
        Some(free)
    }

    fn still(&self, states: &BTreeMap<(usize, State), u64>, profile: &ProfileName) -> u64 {
        self.sum(states, |kind, form, state| kind.table.profile(profile).map_or(0, |p| form.slices(p, state)))
    }

    fn sum(&self, states: &BTreeMap<(usize, State), u64>, of: impl Fn(&Kind, &Form, State) -> u64) -> u64 {
        let worth = |(&(i, state), cards): (&(usize, State), &u64)| {
            let (kind, form) = &self.ground.kinds[i];
            of(kind, form, state) * cards
        };
        states.iter().map(worth).sum()
    }

    fn kinds(&self) -> impl Iterator<Item = (&Arc<Kind>, u64)> {
        let kinds = self.ground.kinds.iter().map(|(kind, _)| kind);
        kinds.zip(self.cards.iter().copied()).filter(|(_, cards)| *cards > 0)
    }

    /// Whether so many slices of each profile can be had at the same time when there is nothing else on its GPUs.
    pub fn together(&self, wanted: &BTreeMap<ProfileName, u64>) -> Together {
        let wanted: Vec<(&ProfileName, u64)> =
            wanted.iter().filter(|(_, n)| **n > 0).map(|(profile, n)| (profile, *n)).collect();
        if wanted.iter().any(|(profile, n)| *n > self.possible(profile)) {
            return Together::No;
        }
        let gib = |(profile, n): &(&ProfileName, u64)| {
            u64::from(profile.memory_gib().unwrap_or(0)).saturating_mul(*n)
        };
        if wanted.iter().map(gib).fold(0, u64::saturating_add) > self.possible_gib() {
            return Together::No;
        }
        // Of the same shape are models that differ in names and memory only.
        let mut shapes: Vec<(&Model, u64)> = Vec::new();
        for (kind, cards) in self.kinds() {
            let model = kind.table.model();
            match shapes.iter_mut().find(|(known, _)| same_shape(known, model)) {
                Some((_, all)) => *all += cards,
                None => shapes.push((model, cards)),
            }
        }
        let offering =
            |profile: &ProfileName| shapes.iter().filter(|(m, _)| m.profile(profile).is_some()).count();
        if wanted.iter().any(|(profile, _)| offering(profile) > 1) {
            return Together::Unknown;
        }
        let fit = |(model, cards): &(&Model, u64)| {
            let count = |p: &crate::geometry::Profile| {
                wanted.iter().find(|(name, _)| **name == p.name).map_or(0, |w| w.1)
            };
            let counts = model.profiles.iter().map(|p| u32::try_from(count(p)).unwrap_or(u32::MAX));
            repack::fits(model, &counts.collect::<Vec<_>>(), u32::try_from(*cards).unwrap_or(u32::MAX))
        };
        let fits: Vec<Option<bool>> = shapes.iter().map(fit).collect();
        if fits.contains(&Some(false)) {
            Together::No
        } else if fits.contains(&None) {
            Together::Unknown
        } else {
            Together::Yes
        }
    }
}

fn same_shape(one: &Model, other: &Model) -> bool {
    let alike = |(a, b): (&crate::geometry::Profile, &crate::geometry::Profile)| {
        a.name == b.name && a.size == b.size && a.starts == b.starts && a.max_count == b.max_count
    };
    one.units == other.units
        && one.profiles.len() == other.profiles.len()
        && one.profiles.iter().zip(&other.profiles).all(alike)
}

/// How many more slices of a profile fit with these, which is somewhere in `range`. If so many fit, fewer do.
fn more(model: &Model, slices: &[u32], gpus: u32, profile: usize, range: RangeInclusive<u32>) -> Option<u32> {
    let fits = |n: u32| {
        let mut slices = slices.to_vec();
        slices[profile] = slices[profile].saturating_add(n);
        repack::fits(model, &slices, gpus)
    };
    let (mut known, mut beyond) = (*range.start(), range.end() + 1);
    while beyond.saturating_sub(known) > 1 {
        let middle = known + (beyond - known) / 2;
        if fits(middle)? { known = middle } else { beyond = middle }
    }
    Some(known)
}
