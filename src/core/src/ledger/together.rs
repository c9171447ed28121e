//! Slices for several profiles at once. Taking them one after another fails on some nodes that have room for all of them: the
//! best place for one is not always where the others still fit. This searches exactly, within a bound on its work.

use std::collections::{BTreeMap, BTreeSet};

use super::{GpuBook, Ledger, Origin, PodCost, Slot};
use crate::engine::table::{Place, State};
use crate::geometry::Slice;
use crate::id::GpuUuid;
use crate::profile::ProfileName;
use crate::resources::Resources;
use crate::workload::PodSetDemand;

/// How much a search may still do. A search that runs out has found nothing, though something may be there.
#[derive(Clone, Copy, Debug)]
pub struct Work(u32);

impl Work {
    /// For the slices of one pod on one node.
    pub fn for_pod() -> Self {
        Self(4000)
    }

    /// So many places may be tried.
    pub fn new(places: u32) -> Self {
        Self(places)
    }

    /// Sets so much of it aside, or all there is.
    #[must_use]
    pub fn split_off(&mut self, places: u32) -> Self {
        let part = places.min(self.0);
        self.0 -= part;
        Self(part)
    }

    /// Adds what has been left of it.
    pub fn put_back(&mut self, Self(rest): Self) {
        self.0 = self.0.saturating_add(rest);
    }

    /// What is left.
    pub fn left(self) -> u32 {
        self.0
    }

    fn spend(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}

/// Pods of a pod set.
pub type Pods<'a> = (&'a PodSetDemand, u32);

/// Where slices are to be, by GPU.
type Arrangement<'a> = BTreeMap<&'a GpuUuid, Vec<Place>>;

/// What is to be placed: one slice of a profile, by its index in [`Search::profiles`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    profile: usize,
    role: Role,
}

/// The order is that of the search within one profile: what has the fewest places comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    /// Promised already: it stays one of those that are made.
    Made,
    /// Promised already: it stays one of those that are declared.
    Declared,
    /// Asked for.
    New,
}

/// A slice that need not stay.
struct Movable {
    place: Place,
    made: bool,
}

struct Gpu<'a> {
    uuid: &'a GpuUuid,
    book: &'a GpuBook,
    /// GPUs of one class are alike in all but what the search puts there.
    class: usize,
    /// By profile of the search, the index in the model.
    index: Vec<Option<usize>>,
    /// The state with what stays, and what the search has put there.
    state: State,
    movable: Vec<Movable>,
}

struct Search<'a, 'w> {
    gpus: Vec<Gpu<'a>>,
    items: Vec<Item>,
    /// By number of items placed: the states of the GPUs, by class, from which the rest cannot be placed.
    failed: BTreeSet<(usize, Vec<(usize, State)>)>,
    work: &'w mut Work,
}

impl Search<'_, '_> {
    /// Places the items from `item` on; `done` has where those before it are.
    fn place(&mut self, item: usize, done: &mut Vec<(usize, Place)>) -> bool {
        let Some(&wanted) = self.items.get(item) else { return true };
        let key = (item, self.states());
        if self.failed.contains(&key) {
            return false;
        }
        for (gpu, place, next) in self.options(wanted) {
            if self.work.spend().is_none() {
                return false;
            }
            let before = std::mem::replace(&mut self.gpus[gpu].state, next);
            done.push((gpu, place));
            if self.place(item + 1, done) {
                return true;
            }
            done.pop();
            self.gpus[gpu].state = before;
        }
        self.failed.insert(key);
        false
    }

    fn states(&self) -> Vec<(usize, State)> {
        let mut states: Vec<(usize, State)> = self.gpus.iter().map(|gpu| (gpu.class, gpu.state)).collect();
        states.sort_unstable();
        states
    }

    /// Where an item can go, the best first: where such a slice is already, then where the least is in the way, then by cost.
    fn options(&self, Item { profile, role }: Item) -> Vec<(usize, Place, State)> {
        let (mut seen, mut options) = (BTreeSet::new(), Vec::new());
        for (at, gpu) in self.gpus.iter().enumerate() {
            let Some(index) = gpu.index[profile] else { continue };
            if !seen.insert((gpu.class, gpu.state)) {
                continue;
            }
            let kind = &gpu.book.kind;
            for (start, next) in kind.table.options(gpu.state, index) {
                let place = Place { profile: index, start };
                let same = gpu.movable.iter().find(|movable| movable.place == place);
                let allowed = match role {
                    Role::Made => same.is_some_and(|movable| movable.made),
                    Role::Declared => same.is_some(),
                    Role::New => true,
                };
                if allowed {
                    let in_the_way = if same.is_some() { 0 } else { gpu.in_the_way(place) };
                    let growth = kind.scores.growth(gpu.state, next);
                    options.push(((same.is_none(), in_the_way, growth, at, start), (at, place, next)));
                }
            }
        }
        options.sort_unstable_by_key(|(rank, _)| *rank);
        options.into_iter().map(|(_, option)| option).collect()
    }
}

impl Gpu<'_> {
    /// How many slices a new one would take away; those of profiles that are to be placed count twice, since another must be
    /// made for them.
    fn in_the_way(&self, place: Place) -> usize {
        let table = &self.book.kind.table;
        let alone = |place| table.with(table.empty(), place);
        let beside = |other: Place| alone(other).and_then(|state| table.with(state, place)).is_some();
        let lost = self.movable.iter().map(|movable| movable.place).filter(|other| !beside(*other));
        lost.map(|other| 1 + usize::from(self.index.contains(&Some(other.profile)))).sum()
    }
}

/// The slices of a profile on these GPUs that claims can count on and that could be taken away, or those of them that are made.
fn movable<'a>(books: impl Iterator<Item = &'a GpuBook>, profile: &ProfileName, made: bool) -> u32 {
    let there = |slot: &&Slot| slot.slice.profile == *profile && slot.counts() && slot.yields();
    let slots = books.flat_map(|book| &book.slots).filter(there).filter(|slot| !made || slot.whole());
    u32::try_from(slots.count()).unwrap_or(u32::MAX)
}

impl Ledger {
    /// Sets slices aside as [`Ledger::take_slices`] does, wherever there is a way to: beside what is there if they all fit, else
    /// with spare slices taken away for them. Nothing changes when there is none, or none is found within `work`.
    pub fn take_together(&mut self, slices: &BTreeMap<ProfileName, u32>, work: &mut Work) -> Option<PodCost> {
        let arrangement = self.arrange(slices, work)?;
        let places: Vec<(GpuUuid, Vec<Place>)> =
            arrangement.into_iter().map(|(uuid, places)| (uuid.clone(), places)).collect();
        let mut total = PodCost::default();
        for (uuid, places) in places {
            if let Some(book) = self.gpus.get_mut(&uuid) {
                book.rearrange(&places, &mut total);
            }
        }
        for (profile, count) in slices {
            *self.claimed.entry(profile.clone()).or_default() += count;
        }
        Some(total)
    }

    /// The book with these pods' slices set aside and their cpu and memory taken, if there is a way to have them all here.
    pub fn with_pods(&self, pods: &[Pods<'_>], work: &mut Work) -> Option<Self> {
        let slices = self.asked(pods)?;
        let mut book = self.clone();
        book.take_together(&slices, work)?;
        for (pod_set, count) in pods {
            book.charge(&pod_set.requests, *count);
        }
        Some(book)
    }

    /// Whether [`Ledger::with_pods`] finds a way.
    pub fn fits(&self, pods: &[Pods<'_>], work: &mut Work) -> bool {
        self.asked(pods).is_some_and(|slices| self.arrange(&slices, work).is_some())
    }

    /// The slices that pods ask for, unless the node is short of something else.
    fn asked(&self, pods: &[Pods<'_>]) -> Option<BTreeMap<ProfileName, u32>> {
        let mut requests = Resources::default();
        let mut slices: BTreeMap<ProfileName, u32> = BTreeMap::new();
        for (pod_set, count) in pods {
            requests.add(&pod_set.requests, i64::from(*count));
            for (profile, each) in &pod_set.slices {
                let all = slices.entry(profile.clone()).or_default();
                *all = all.saturating_add(each.saturating_mul(*count));
            }
        }
        self.free.first_lacking(&requests).is_none().then_some(slices)
    }

    /// No more pods of a pod set than this fit, though fewer may.
    pub fn pods_at_most(&self, pod_set: &PodSetDemand) -> u32 {
        let wanted = pod_set.slices.iter().filter(|(_, count)| **count > 0);
        let most = wanted.map(|(profile, count)| self.at_most(profile) / count).min().unwrap_or(u32::MAX);
        if self.free.first_lacking(&pod_set.requests).is_some() { 0 } else { most }
    }

    /// No more slices of a profile than this can be had for new claims.
    pub fn at_most(&self, profile: &ProfileName) -> u32 {
        let room = self.gpus_with(profile).map(|(_, book, index)| {
            let next = |state: &State| book.kind.table.options(*state, index).next().map(|(_, next)| next);
            let filled = std::iter::successors(Some(book.state(|slot| !slot.yields())), next);
            u32::try_from(filled.skip(1).count()).unwrap_or(u32::MAX)
        });
        room.sum::<u32>() + self.spare_for_good(profile)
    }

    /// No more units than this can be had for new claims to slices of these profiles.
    pub fn units_at_most<'a>(&self, profiles: impl IntoIterator<Item = &'a ProfileName>) -> u32 {
        let usable = self.gpus.values().filter(|book| book.usable);
        let free: u32 = usable.map(|book| book.kind.table.free(book.state(|slot| !slot.yields()))).sum();
        let units = |profile: &ProfileName, count: u32| self.units_of(profile).unwrap_or(0) * count;
        let promised: u32 = self.promised().iter().map(|(profile, (_, count))| units(profile, *count)).sum();
        let spare = profiles.into_iter().map(|profile| units(profile, self.spare_for_good(profile)));
        free.saturating_sub(promised) + spare.sum::<u32>()
    }

    /// The units that a slice of the profile takes, at least; `None` when no usable GPU has it.
    pub fn units_of(&self, profile: &ProfileName) -> Option<u32> {
        let size = |(_, book, index): (_, &GpuBook, usize)| book.kind.table.model().profiles[index].size;
        self.gpus_with(profile).map(size).min().map(u32::from)
    }

    /// Slices that cannot be taken away, or only on GPUs that are not usable, and that claims can count on.
    fn for_good(&self, profile: &ProfileName, made: bool) -> u32 {
        let unusable = self.gpus.values().filter(|book| !book.usable);
        self.held(profile) + movable(unusable, profile, made)
    }

    /// Those that no claim needs.
    fn spare_for_good(&self, profile: &ProfileName) -> u32 {
        let kept_from_all = self.going(profile);
        self.for_good(profile, false).saturating_sub(self.claimed(profile) + kept_from_all)
    }

    /// By profile, how many of the slices on usable GPUs that could be taken away must stay, because claims count on them: of
    /// those that are made, and in all.
    fn promised(&self) -> BTreeMap<ProfileName, (u32, u32)> {
        let of = |profile: &ProfileName, claimed: u32, made| {
            let usable = self.gpus.values().filter(|book| book.usable);
            claimed.saturating_sub(self.for_good(profile, made)).min(movable(usable, profile, made))
        };
        let claimed = self.claimed.iter().filter(|(_, claimed)| **claimed > 0);
        let promised = claimed.map(|(profile, claimed)| {
            let (made, declared) = (of(profile, *claimed, true), of(profile, *claimed, false));
            (profile.clone(), (made, declared.max(made)))
        });
        promised.collect()
    }

    fn arrange(&self, slices: &BTreeMap<ProfileName, u32>, work: &mut Work) -> Option<Arrangement<'_>> {
        let mut needed = 0;
        for (profile, count) in slices.iter().filter(|(_, count)| **count > 0) {
            needed += self.units_of(profile)?.saturating_mul(*count);
            if *count > self.at_most(profile) {
                return None;
            }
        }
        if needed > self.units_at_most(slices.keys()) {
            return None;
        }
        self.arrange_beside(slices, work).or_else(|| self.arrange_anew(slices, work))
    }

    /// Beside all that is there: what stands spare is used, and the rest goes where room is free.
    fn arrange_beside(
        &self,
        slices: &BTreeMap<ProfileName, u32>,
        work: &mut Work,
    ) -> Option<Arrangement<'_>> {
        let mut items = Vec::new();
        let profiles: Vec<&ProfileName> = slices.keys().collect();
        for (profile, (name, count)) in slices.iter().enumerate() {
            let spare = self.reusable(name).saturating_sub(self.claimed(name));
            let new = count.saturating_sub(spare);
            items.extend((0..new).map(|_| Item { profile, role: Role::New }));
        }
        self.search(&profiles, items, |_| true, work)
    }

    /// Beside what cannot go away: of the rest as much stays as claims count on.
    fn arrange_anew(&self, slices: &BTreeMap<ProfileName, u32>, work: &mut Work) -> Option<Arrangement<'_>> {
        if !self.gpus.values().any(|book| book.usable && book.slots.iter().any(Slot::yields)) {
            return None;
        }
        let promised = self.promised();
        let names: BTreeSet<&ProfileName> = promised.keys().chain(slices.keys()).collect();
        let profiles: Vec<&ProfileName> = names.into_iter().collect();
        let mut items = Vec::new();
        for (profile, name) in profiles.iter().enumerate() {
            let (made, declared) = promised.get(*name).copied().unwrap_or((0, 0));
            let new = slices.get(*name).copied().unwrap_or(0).saturating_sub(self.spare_for_good(name));
            let roles = [(Role::Made, made), (Role::Declared, declared - made), (Role::New, new)];
            for (role, count) in roles {
                items.extend((0..count).map(|_| Item { profile, role }));
            }
        }
        self.search(&profiles, items, |slot| !slot.yields(), work)
    }

    fn search(
        &self,
        profiles: &[&ProfileName],
        mut items: Vec<Item>,
        stays: impl Fn(&Slot) -> bool,
        work: &mut Work,
    ) -> Option<Arrangement<'_>> {
        let units: Vec<Option<u32>> = profiles.iter().map(|profile| self.units_of(profile)).collect();
        items.sort_unstable_by_key(|item| (std::cmp::Reverse(units[item.profile]), *item));
        let mut gpus: Vec<Gpu<'_>> = Vec::new();
        for (uuid, book) in self.gpus.iter().filter(|(_, book)| book.usable) {
            let movable: Vec<Movable> = book
                .slots
                .iter()
                .filter(|slot| !stays(slot) && slot.counts())
                .filter_map(|slot| Some(Movable { place: slot.place?, made: slot.whole() }))
                .collect();
            let alike = |other: &Gpu<'_>| {
                other.book.kind == book.kind
                    && other.movable.len() == movable.len()
                    && other
                        .movable
                        .iter()
                        .all(|a| movable.iter().any(|b| a.place == b.place && a.made == b.made))
            };
            let class = gpus.iter().find(|other| alike(other)).map_or(gpus.len(), |other| other.class);
            let index = profiles.iter().map(|profile| book.kind.table.profile(profile)).collect();
            gpus.push(Gpu { uuid, book, class, index, state: book.state(&stays), movable });
        }
        let mut search = Search { gpus, items, failed: BTreeSet::new(), work };
        let mut done = Vec::new();
        if !search.place(0, &mut done) {
            return None;
        }
        let mut arrangement = Arrangement::new();
        for (gpu, place) in done {
            arrangement.entry(search.gpus[gpu].uuid).or_default().push(place);
        }
        Some(arrangement)
    }
}

impl GpuBook {
    /// Declares slices at these places, and takes away what does not go beside them.
    fn rearrange(&mut self, places: &[Place], total: &mut PodCost) {
        let kind = self.kind.clone();
        let model = kind.table.model();
        let before = self.state(|_| true);
        let stays = |slot: &Slot| {
            let wanted = || slot.place.is_some_and(|place| places.contains(&place));
            !slot.yields() || slot.origin == Origin::Declared && wanted()
        };
        let (mut slots, rest): (Vec<Slot>, Vec<Slot>) =
            std::mem::take(&mut self.slots).into_iter().partition(stays);
        for &place in places {
            let declared = |slot: &Slot| slot.place == Some(place) && slot.origin == Origin::Declared;
            if slots.iter().any(declared) {
                continue;
            }
            let entry = &model.profiles[place.profile];
            let slice = Slice { start: place.start, size: entry.size, profile: entry.name.clone() };
            slots.push(Slot::new(slice, place));
            total.created += 1;
        }
        for slot in rest {
            if model.check(&slot.slice, slots.iter().map(|slot| &slot.slice)).is_ok() {
                slots.push(slot);
            } else {
                let share = slot.place.map_or(0, |place| kind.millionths(place.profile));
                if slot.origin == Origin::Declared {
                    total.displaced += 1;
                    total.missed = total.missed.saturating_add(share);
                }
            }
        }
        self.slots = slots;
        let after = self.state(|_| true);
        total.potential += kind.scores.growth(before, after);
        total.free += kind.table.free(after);
    }
}

#[cfg(test)]
pub(crate) mod tests;
