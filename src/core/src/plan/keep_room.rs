//! Keeping room for workloads that have waited long, so that smaller ones do not take whatever comes free for ever.
//!
//! | a workload that finds no room | then |
//! |---|---|
//! | has waited less than `after` | nothing |
//! | has waited longer, oldest first | holds where room for all its pods comes free soonest, if few enough are kept already |
//! | has holds, half of their time has passed | holds for another while, elsewhere if that is sooner by now |
//! | has holds, and nothing is in their room any more | it lacks something else: they run out |
//! | lost its quota to a Retry | its holds stay until they expire |
//! | is placed | its holds go in the writes that enter its claims |
//! | is admitted, finished, deactivated or gone | its holds go |
//!
//! Nobody else is placed where room is kept, but for those who are sure to be over before it is filled (backfill): Kueue ends
//! them, and everybody who is in the way, at a time that is known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Pass;
use super::place::Obstacle;
use crate::geometry::{Mask, Slice};
use crate::hands::Hands;
use crate::id::{Attempt, GpuUuid, NodeName, WorkloadUid};
use crate::ledger::{Ledger, Units, Wait};
use crate::node::{Hold, MAX_HOLDS, SliceState};
use crate::profile::ProfileName;
use crate::resources::Resources;
use crate::time::Timestamp;
use crate::workload::{KeepRoom, PodSetDemand, Reservation, Workload};

/// How long before room is filled those must be over that are let in meanwhile: slices have to be made for them, and their pods
/// may take their time to end.
const SLACK: Duration = Duration::from_mins(1);

/// Room for all pods of a workload, by node and GPU.
type Room = BTreeMap<NodeName, Units>;

impl Pass<'_> {
    /// Drops the holds of those who wait no more, and takes idle slices out of room that is kept.
    pub(super) fn tidy_kept_room(&mut self) {
        let names: Vec<NodeName> =
            self.kept.values().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let workloads = &self.world.workloads;
        let waits = |uid: &WorkloadUid| {
            workloads
                .get(uid)
                .is_some_and(|w| w.active && !w.admitted && !w.finished && w.keep_room().workloads > 0)
        };
        self.kept.retain(|uid, _| waits(uid));
        for name in names {
            let Some(book) = self.books.get_mut(&name) else { continue };
            let lifted = book.lift_holds(|hold| !waits(&hold.workload.uid));
            if book.clear_kept_room() || !lifted.is_empty() {
                self.note_change(&name);
            }
        }
    }

    /// As [`Self::place`], for a workload that is not admitted yet: in the room that is kept for it if it fits there, else
    /// anywhere, else where it will be over before the room is filled.
    pub(super) fn place_waiting(
        &mut self,
        workload: &Workload,
        attempt: &Attempt,
        demand: &[PodSetDemand],
    ) -> Result<(), Obstacle> {
        let uid = &workload.key.uid;
        let own = self.lift(|hold| hold.workload.uid == *uid);
        if own.is_empty() {
            let placed = self.place(workload, attempt, demand);
            return placed.or_else(|obstacle| self.backfill(workload, attempt, demand).ok_or(obstacle));
        }
        if self.place_within(workload, attempt, demand, &room_of(&own)) {
            self.kept.remove(uid);
            return Ok(());
        }
        let placed = self.place(workload, attempt, demand);
        match placed {
            Ok(()) => drop(self.kept.remove(uid)),
            Err(_) => self.put_back(own),
        }
        placed
    }

    /// Takes holds out of the books.
    pub(super) fn lift(&mut self, lifted: impl Fn(&Hold) -> bool) -> Vec<(NodeName, Hold)> {
        let mut all = Vec::new();
        let names: BTreeSet<NodeName> = self.kept.values().flatten().cloned().collect();
        for name in names {
            let Some(book) = self.books.get_mut(&name) else { continue };
            let holds = book.lift_holds(&lifted);
            if !holds.is_empty() {
                self.note_change(&name);
            }
            all.extend(holds.into_iter().map(|hold| (name.clone(), hold)));
        }
        all
    }

    pub(super) fn put_back(&mut self, holds: Vec<(NodeName, Hold)>) {
        for (name, hold) in holds {
            if let Some(book) = self.books.get_mut(&name) {
                self.kept.entry(hold.workload.uid.clone()).or_default().insert(name.clone());
                book.enter_holds([hold]);
                self.note_change(&name);
            }
        }
    }

    /// Enters claims for every pod that has none yet within some room; whether all found their place.
    fn place_within(
        &mut self,
        workload: &Workload,
        attempt: &Attempt,
        demand: &[PodSetDemand],
        room: &Room,
    ) -> bool {
        let mut books: BTreeMap<NodeName, Ledger> = BTreeMap::new();
        for (name, units) in room {
            let Some(mut book) = self.books.get(name).cloned() else { continue };
            book.confine(units.clone());
            books.insert(name.clone(), book);
        }
        for pod_set in largest_first(demand, &books) {
            let Ok(nodes) = self.admissible(pod_set) else { return false };
            for _ in self.pods_claimed(&workload.key, pod_set)..pod_set.pods {
                let offers = nodes.iter().filter_map(|name| {
                    let (cost, book) = books.get(name)?.try_pod(pod_set).ok()?;
                    Some((cost, name, book))
                });
                let best = offers.min_by(|(a, name_a, _), (b, name_b, _)| (a, name_a).cmp(&(b, name_b)));
                let Some((_, name, mut book)) = best else { return false };
                book.claim_pod(&workload.key, attempt, pod_set);
                books.insert(name.clone(), book);
            }
        }
        for (name, mut book) in books {
            book.release_bounds();
            self.books.insert(name.clone(), book);
            self.note_change(&name);
            self.note_claim(&workload.key.uid, &name);
        }
        true
    }

    /// Places a workload in room that is kept for others, if it is sure to be over before that room is filled.
    fn backfill(&mut self, workload: &Workload, attempt: &Attempt, demand: &[PodSetDemand]) -> Option<()> {
        let over = workload.limit?.ends(self.now) + SLACK;
        let late_enough = |uid: &&WorkloadUid| self.filled_by(uid).is_some_and(|filled| over <= filled);
        let others: BTreeSet<WorkloadUid> = self.kept.keys().filter(late_enough).cloned().collect();
        if others.is_empty() {
            return None;
        }
        let lifted = self.lift(|hold| others.contains(&hold.workload.uid));
        let placed = self.place(workload, attempt, demand);
        self.put_back(lifted);
        placed.ok()
    }

    /// When the last of those ends who are in the room that is kept for a workload; `None` when nobody knows, or when nobody
    /// is there: it may be filled at once.
    fn filled_by(&self, uid: &WorkloadUid) -> Option<Timestamp> {
        let mut filled = None;
        for name in self.kept.get(uid)? {
            let Some(book) = self.books.get(name) else { continue };
            for hold in book.holds().iter().filter(|hold| hold.workload.uid == *uid) {
                for slice in book.in_the_way(hold) {
                    filled = filled.max(Some(self.end_of_use(name, &hold.gpu, slice)?));
                }
            }
        }
        filled
    }

    /// When the slice at a place ends to be used.
    fn end_of_use(&self, node: &NodeName, gpu: &GpuUuid, slice: &Slice) -> Option<Timestamp> {
        let mig = self.world.nodes.get(node)?.mig.as_ref()?;
        let at = mig.slices.iter().position(|o| o.gpu == *gpu && o.slice == *slice);
        let hands = at.filter(|&at| mig.slices[at].state == SliceState::InUse);
        match hands.and_then(|at| self.hands.get(node)?.get(at)) {
            Some(Hands::Workload { uid, .. }) => self.end_of(uid),
            Some(Hands::Leaving) => Some(self.now),
            Some(Hands::Stranger) => None,
            // Any of those who have claimed such slices may get it.
            Some(Hands::Unknown) | None => self.last_end(node, &slice.profile),
        }
    }

    fn last_end(&self, node: &NodeName, profile: &ProfileName) -> Option<Timestamp> {
        let claims = self.books.get(node).map_or(&[][..], Ledger::claims).iter();
        let mut ends = claims.filter(|c| c.profile == *profile).map(|c| self.end_of(&c.workload.uid));
        ends.try_fold(self.now, |last, end| Some(last.max(end?)))
    }

    fn end_of(&self, uid: &WorkloadUid) -> Option<Timestamp> {
        match self.world.workloads.get(self.heir(uid)).filter(|w| !w.finished) {
            Some(workload) => workload.limit.map(|limit| limit.ends(self.now).max(self.now)),
            None => Some(self.now),
        }
    }

    /// Keeps room for a workload that found none, if it has waited long enough, or goes on keeping it. Returns what the workload
    /// is told.
    pub(super) fn keep_room(
        &mut self,
        workload: &Workload,
        reservation: &Reservation,
        demand: &[PodSetDemand],
        obstacle: Obstacle,
    ) -> Obstacle {
        let (terms, uid) = (workload.keep_room(), &workload.key.uid);
        if terms.workloads == 0 {
            return obstacle;
        }
        let own = self.lift(|hold| hold.workload.uid == *uid);
        self.kept.remove(uid);
        let room = if own.is_empty() {
            let due = workload.waits_since(reservation) + terms.after;
            if due > self.now {
                self.recheck(due);
                return obstacle;
            }
            self.new_room(workload, demand, terms)
        } else {
            self.go_on(workload, demand, terms, own)
        };
        if room.is_empty() {
            return obstacle;
        }
        let nodes: BTreeSet<&str> = room.iter().map(|(name, _)| name.as_str()).collect();
        let nodes = nodes.into_iter().collect::<Vec<_>>().join(", ");
        self.put_back(room);
        let told = |words: &str| format!("{words} Room is being kept for it on {nodes}.");
        Obstacle {
            cause: obstacle.cause,
            message: told(&obstacle.message),
            earlier: obstacle.earlier.as_deref().map(told),
        }
    }

    /// What becomes of the holds of a workload that still waits.
    fn go_on(
        &mut self,
        workload: &Workload,
        demand: &[PodSetDemand],
        terms: KeepRoom,
        own: Vec<(NodeName, Hold)>,
    ) -> Vec<(NodeName, Hold)> {
        let until = own.iter().map(|(_, hold)| hold.until).min().unwrap_or(self.now);
        let Some((wait, _)) = self.find_room(workload, demand, Some(&room_of(&own))) else {
            // It asks for more than before, or a node or a GPU has failed.
            return self.new_room(workload, demand, terms);
        };
        let renewal = until - terms.lasts / 2;
        if renewal > self.now {
            self.recheck(renewal);
            return own;
        }
        if wait.in_use == 0 {
            return own;
        }
        match self.find_room(workload, demand, None) {
            Some((other, room)) if other.is_sooner_than(&wait) && self.may_keep(demand, &room, terms) => {
                self.holds(workload, &room, terms)
            }
            _ => self.holds(workload, &room_of(&own), terms),
        }
    }

    /// Holds where room comes free soonest; none where room is not what is lacking, or enough is kept already.
    fn new_room(
        &mut self,
        workload: &Workload,
        demand: &[PodSetDemand],
        terms: KeepRoom,
    ) -> Vec<(NodeName, Hold)> {
        if self.kept.len() >= usize::try_from(terms.workloads).unwrap_or(usize::MAX) {
            return Vec::new();
        }
        let Some((wait, room)) = self.find_room(workload, demand, None) else { return Vec::new() };
        if wait.in_use == 0 || !self.may_keep(demand, &room, terms) {
            return Vec::new();
        }
        self.holds(workload, &room, terms)
    }

    fn holds(&mut self, workload: &Workload, room: &Room, terms: KeepRoom) -> Vec<(NodeName, Hold)> {
        // The API server keeps whole seconds.
        let until = Timestamp((self.now + terms.lasts).0.div_euclid(1000) * 1000);
        self.recheck(until - terms.lasts / 2);
        let mut holds = Vec::new();
        for (name, gpu, units) in
            room.iter().flat_map(|(n, units)| units.iter().map(move |(g, u)| (n, g, *u)))
        {
            for (start, size) in runs(units) {
                let (workload, gpu) = (workload.key.clone(), gpu.clone());
                holds.push((name.clone(), Hold { workload, gpu, start, size, until }));
            }
        }
        holds
    }

    /// Whether so much may be kept beside what is kept already.
    fn may_keep(&self, demand: &[PodSetDemand], room: &Room, terms: KeepRoom) -> bool {
        let fits = |(name, units): (&NodeName, &Units)| {
            let there = self.books.get(name).map_or(0, |book| book.holds().len());
            there + units.values().map(|units| runs(*units).len()).sum::<usize>() <= MAX_HOLDS
        };
        if !room.iter().all(fits) {
            return false;
        }
        let kept = || self.kept.values().flatten().collect::<BTreeSet<_>>().into_iter();
        let holds = kept().filter_map(|name| self.books.get(name)).flat_map(Ledger::holds);
        let others: u32 = holds.map(|hold| hold.mask().count()).sum();
        if others == 0 {
            return true;
        }
        let nodes = demand.iter().filter_map(|pod_set| self.admissible(pod_set).ok()).flatten();
        let nodes: BTreeSet<NodeName> = nodes.collect();
        let all: u32 = nodes.iter().filter_map(|name| self.books.get(name)).map(Ledger::units).sum();
        let wanted: u32 = room.values().flat_map(Units::values).map(|units| units.count()).sum();
        u64::from(others + wanted) * 100 <= u64::from(all) * u64::from(terms.percent)
    }

    /// Where room for all pods of a workload that have none comes free soonest, perhaps within some room only, and what it is
    /// that it waits for. The largest pods choose first.
    fn find_room(
        &self,
        workload: &Workload,
        demand: &[PodSetDemand],
        within: Option<&Room>,
    ) -> Option<(Wait, Room)> {
        let mut books: BTreeMap<NodeName, Ledger> = BTreeMap::new();
        let (mut wait, mut room) = (Wait::default(), Room::new());
        for pod_set in largest_first(demand, &self.books) {
            let mut unknown: BTreeSet<NodeName> = self.admissible(pod_set).ok()?.into_iter().collect();
            if let Some(within) = within {
                unknown.retain(|name| within.contains_key(name));
            }
            let mut ranked: BTreeSet<(Wait, NodeName)> = BTreeSet::new();
            for _ in self.pods_claimed(&workload.key, pod_set)..pod_set.pods {
                let ends = |name: &NodeName, gpu: &GpuUuid, slice: &Slice| self.end_of_use(name, gpu, slice);
                for name in std::mem::take(&mut unknown) {
                    if !books.contains_key(&name) {
                        books.insert(name.clone(), self.vacated(&name, within)?);
                    }
                    if let Ok((wait, ..)) =
                        books[&name].room_for_pod(pod_set, &|gpu, slice| ends(&name, gpu, slice))
                    {
                        ranked.insert((wait, name));
                    }
                }
                let (_, name) = ranked.pop_first()?;
                let found = books[&name].room_for_pod(pod_set, &|gpu, slice| ends(&name, gpu, slice));
                let (more, book, units) = found.ok()?;
                wait = wait.and(more);
                let kept = room.entry(name.clone()).or_default();
                for (gpu, units) in units {
                    let mask = kept.entry(gpu).or_default();
                    *mask = mask.with(units);
                }
                books.insert(name.clone(), book);
                unknown.insert(name);
            }
        }
        Some((wait, room))
    }

    /// The book of a node with the cpu and memory free that it would have if all pods with claims had ended.
    fn vacated(&self, name: &NodeName, within: Option<&Room>) -> Option<Ledger> {
        let host = self.world.nodes.get(name)?.host.as_ref()?;
        let mut free: Resources = host.allocatable.clone();
        free.add(&host.used, -1);
        for ((label, pod_set), pods) in &host.bound {
            if let Some(requests) = self.requests(self.heir(label), pod_set) {
                free.add(requests, i64::from(*pods));
            }
        }
        let mut book = self.books.get(name)?.with_free(free);
        if let Some(within) = within {
            book.confine(within.get(name).cloned().unwrap_or_default());
        }
        Some(book)
    }

    /// Where somebody finds no room only because it is kept for others: what he is told.
    pub(super) fn kept_from(&self, demand: &PodSetDemand, nodes: &[NodeName]) -> String {
        let kept: BTreeSet<&NodeName> = self.kept.values().flatten().collect();
        let would_do = |name: &&&NodeName| {
            nodes.contains(name)
                && self.books.get(**name).is_some_and(|book| {
                    let mut book = book.clone();
                    book.lift_holds(|_| true);
                    book.quote(demand).is_ok()
                })
        };
        let nodes: Vec<&str> = kept.iter().filter(would_do).map(|name| name.as_str()).collect();
        if nodes.is_empty() {
            return String::new();
        }
        format!(" Free room on {} is being kept for workloads that have waited longer.", nodes.join(", "))
    }
}

fn room_of(holds: &[(NodeName, Hold)]) -> Room {
    let mut room = Room::new();
    for (name, hold) in holds {
        let units = room.entry(name.clone()).or_default().entry(hold.gpu.clone()).or_default();
        *units = units.with(hold.mask());
    }
    room
}

/// The pod sets, those with the largest pods first.
fn largest_first<'a>(
    demand: &'a [PodSetDemand],
    books: &BTreeMap<NodeName, Ledger>,
) -> Vec<&'a PodSetDemand> {
    let mut sorted: Vec<&PodSetDemand> = demand.iter().collect();
    let size = |pod_set: &PodSetDemand| {
        let sizes = books.values().find_map(|book| book.size_of(&pod_set.slices));
        std::cmp::Reverse(sizes.unwrap_or_default())
    };
    sorted.sort_by_cached_key(|pod_set| size(pod_set));
    sorted
}

/// Units as runs without a gap: first unit and length.
fn runs(Mask(units): Mask) -> Vec<(u8, u8)> {
    let mut runs: Vec<(u8, u8)> = Vec::new();
    for unit in (0..crate::geometry::MAX_UNITS).filter(|unit| units >> unit & 1 == 1) {
        match runs.last_mut() {
            Some((start, size)) if *start + *size == unit => *size += 1,
            _ => runs.push((unit, 1)),
        }
    }
    runs
}
