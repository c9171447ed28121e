//! Placing whole requests, slice by slice, by a rule for one.

use std::collections::BTreeMap;

use super::choose::{Choose, Shift, Spot, Wanted};
use super::counts::{Counts, Part};
use super::demand::Request;
use super::fleet::{Fleet, Owner, Use};
use super::inventory::Inventory;
use super::policy::{Policy, Step};
use crate::engine::pool::Gpu;
use crate::engine::relocate::Placed;
use crate::engine::table::Place;

/// What a policy may do and know.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// How many slices may be moved for one request.
    pub moves: usize,
    /// The share of the requests whose slices may be moved, from 0 to 1.
    pub movable: f64,
    /// Whether it is told when requests will end.
    pub known_durations: bool,
}

/// Places requests on a fleet by a rule. All slices of a pod are on one node; what is placed with others for one pod is never moved,
/// and no room is made for it.
#[derive(Debug)]
pub struct Placing<C> {
    fleet: Fleet,
    counts: Counts,
    choose: C,
    limits: Limits,
    /// By request: where its slices are.
    at: BTreeMap<u32, Vec<Gpu>>,
    /// What has been done for the request that is being placed.
    done: Vec<Done>,
}

/// What can be undone.
#[derive(Clone, Debug)]
enum Done {
    Put(Gpu, Owner),
    /// Moved at one time: one may be where another was.
    Moved(Vec<Moved>),
}

/// A slice that was at `place` on `from` is now on `to`.
#[derive(Clone, Copy, Debug)]
struct Moved {
    owner: Owner,
    from: Gpu,
    place: Place,
    to: Gpu,
}

/// The request that is being placed.
struct Asked<'a> {
    number: u32,
    request: &'a Request,
    now: f64,
    /// Infinite if it is not told.
    ends: f64,
    moves_left: usize,
}

impl<C: Choose> Placing<C> {
    /// Places by `choose` on a fleet of an inventory.
    pub fn new(fleet: Fleet, inventory: &Inventory, choose: C, limits: Limits) -> Self {
        let counts = Counts::new(fleet.catalogue(), inventory);
        Self { fleet, counts, choose, limits, at: BTreeMap::new(), done: Vec::new() }
    }

    /// The GPUs.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// What the policy knows of how long a request runs.
    fn told(&self, request: &Request) -> Option<f64> {
        request.duration.filter(|_| self.limits.known_durations)
    }

    fn part(&self, gpu: Gpu, place: Place) -> [Part; 1] {
        [Part::one(self.fleet.model(gpu), place.profile)]
    }

    fn put(&mut self, gpu: Gpu, slice: Use) -> bool {
        let put = self.fleet.put(gpu, slice);
        if put {
            self.counts.enter(&self.part(gpu, slice.placed.place));
            self.choose.changed(&self.fleet, gpu);
        }
        put
    }

    fn take(&mut self, gpu: Gpu, owner: Owner) -> Option<Use> {
        let taken = self.fleet.take(gpu, owner)?;
        self.counts.leave(&self.part(gpu, taken.placed.place));
        self.choose.changed(&self.fleet, gpu);
        Some(taken)
    }

    fn relocate(&mut self, owner: Owner, to: Gpu) {
        if let Some(gpu) = self.at.get_mut(&owner.request).and_then(|at| at.get_mut(owner.slice as usize)) {
            *gpu = to;
        }
    }

    /// Takes back what has been done since there were so many entries.
    fn undo(&mut self, until: usize) {
        while self.done.len() > until {
            match self.done.pop() {
                Some(Done::Put(gpu, owner)) => {
                    self.take(gpu, owner);
                }
                Some(Done::Moved(moved)) => {
                    let back = moved.into_iter().map(|m| (self.take(m.to, m.owner), m.from, m.place));
                    let back: Vec<(Option<Use>, Gpu, Place)> = back.collect();
                    self.settle(back.into_iter().filter_map(|(slice, to, place)| Some((slice?, to, place))));
                }
                None => {}
            }
        }
    }

    /// Puts slices that were taken to other places.
    fn settle(&mut self, slices: impl Iterator<Item = (Use, Gpu, Place)>) {
        for (slice, to, place) in slices {
            self.put(to, Use { placed: Placed { place, ..slice.placed }, ..slice });
            self.relocate(slice.owner, to);
        }
    }

    fn place_slice(
        &mut self,
        asked: &mut Asked<'_>,
        profile: usize,
        slice: u32,
        node: Option<u32>,
    ) -> Option<Gpu> {
        let wanted = Wanted { profile, node, now: asked.now, ends: asked.ends };
        let spot = match self.choose.choose(&self.fleet, &wanted) {
            Some(spot) => spot,
            None => self.make_room(asked, &wanted)?,
        };
        let owner = Owner { request: asked.number, slice };
        let placed = Placed { place: spot.place, movable: false };
        if !self.put(spot.gpu, Use { owner, placed, ends: asked.ends }) {
            return None;
        }
        self.done.push(Done::Put(spot.gpu, owner));
        Some(spot.gpu)
    }

    /// Moves others out of the way.
    fn make_room(&mut self, asked: &mut Asked<'_>, wanted: &Wanted) -> Option<Spot> {
        if asked.moves_left == 0 || wanted.node.is_some() || !self.counts.would_fit(asked.request) {
            return None;
        }
        let (spot, shifts) = self.choose.make_room(&self.fleet, wanted, asked.moves_left)?;
        asked.moves_left = asked.moves_left.saturating_sub(shifts.len());
        let owners: Vec<Owner> = shifts.iter().map(|s| self.fleet.owner(spot.gpu, s.index)).collect();
        let taken: Vec<Option<Use>> = owners.into_iter().map(|owner| self.take(spot.gpu, owner)).collect();
        let homeless = || taken.iter().flatten().zip(&shifts);
        let moved = homeless().map(|(slice, shift)| Moved {
            owner: slice.owner,
            from: spot.gpu,
            place: slice.placed.place,
            to: shift.to,
        });
        self.done.push(Done::Moved(moved.collect()));
        let to = |(slice, shift): (&Use, &Shift)| {
            (*slice, shift.to, Place { start: shift.start, ..slice.placed.place })
        };
        self.settle(homeless().map(to));
        Some(spot)
    }

    /// Places the slices of one pod, largest first; `first` is the number of the first of them.
    fn place_pod(&mut self, asked: &mut Asked<'_>, profiles: &[usize], first: u32) -> Option<Vec<Gpu>> {
        let (&largest, rest) = profiles.split_first()?;
        if rest.is_empty() {
            return Some(vec![self.place_slice(asked, largest, first, None)?]);
        }
        let wanted = Wanted { profile: largest, node: None, now: asked.now, ends: asked.ends };
        let preferred = self.choose.choose(&self.fleet, &wanted).map(|spot| self.fleet.node(spot.gpu))?;
        let others = (0..self.fleet.nodes()).filter(|node| *node != preferred);
        std::iter::once(preferred).chain(others).find_map(|node| {
            let before = self.done.len();
            let placed: Option<Vec<Gpu>> = (first..)
                .zip(profiles)
                .map(|(slice, profile)| self.place_slice(asked, *profile, slice, Some(node)))
                .collect();
            if placed.is_none() {
                self.undo(before);
            }
            placed
        })
    }

    fn place_all(&mut self, asked: &mut Asked<'_>) -> Option<Vec<Gpu>> {
        let mut profiles: Vec<usize> = Vec::new();
        for ask in &asked.request.slices {
            profiles.extend((0..ask.count).map(|_| ask.profile));
        }
        profiles.sort_by_key(|p| std::cmp::Reverse(self.fleet.catalogue().offers()[*p].units));
        let mut at = Vec::new();
        for _ in 0..asked.request.pods {
            let first = u32::try_from(at.len()).unwrap_or(u32::MAX);
            at.extend(self.place_pod(asked, &profiles, first)?);
        }
        Some(at)
    }

    /// What has been done, what was moved first.
    fn tell(&mut self, steps: &mut Vec<Step>) {
        let fleet = &self.fleet;
        let mut step = |gpu: Gpu, owner: Owner, moved: bool| {
            // A slice that was moved twice is told of once, where it is.
            let found = (0..fleet.placed(gpu).len()).find(|index| fleet.owner(gpu, *index) == owner);
            steps.extend(found.map(|at| Step { owner, gpu, place: fleet.placed(gpu)[at].place, moved }));
        };
        for done in &self.done {
            if let Done::Moved(moved) = done {
                for m in moved {
                    step(m.to, m.owner, true);
                }
            }
        }
        for done in self.done.drain(..) {
            if let Done::Put(gpu, owner) = done {
                step(gpu, owner, false);
            }
        }
    }
}

impl<C: Choose> Policy for Placing<C> {
    fn note(&mut self, request: &Request) {
        let told = self.told(request);
        for (profile, slices) in request.totals() {
            self.choose.asked(&self.fleet, profile, slices, told);
        }
    }

    fn admit(&mut self, number: u32, request: &Request, now: f64, steps: &mut Vec<Step>) -> bool {
        let per_pod: u32 = request.slices.iter().map(|ask| ask.count).sum();
        let mut asked = Asked {
            number,
            request,
            now,
            ends: self.told(request).map_or(f64::INFINITY, |seconds| now + seconds),
            moves_left: self.limits.moves,
        };
        self.done.clear();
        let Some(at) = self.place_all(&mut asked) else {
            self.undo(0);
            return false;
        };
        let is_movable = per_pod == 1 && request.drawn < self.limits.movable;
        for (slice, gpu) in (0..).zip(&at).filter(|_| is_movable) {
            self.fleet.let_move(*gpu, Owner { request: number, slice });
        }
        self.at.insert(number, at);
        self.tell(steps);
        true
    }

    fn release(&mut self, number: u32) {
        for (slice, gpu) in (0..).zip(self.at.remove(&number).unwrap_or_default()) {
            self.take(gpu, Owner { request: number, slice });
        }
    }

    fn would_fit(&mut self, request: &Request) -> bool {
        self.counts.would_fit(request)
    }

    fn used(&self) -> u64 {
        self.fleet.used()
    }
}
