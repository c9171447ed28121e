//! What the GPUs of one model can be, looked up instead of computed.

use std::sync::Arc;

use crate::geometry::{MAX_UNITS, Mask, Model};
use crate::profile::Media;

/// All that a decision needs to know of one GPU: which units are occupied, who has the media engines, and how many slices
/// there are of a profile that is limited further. An index into the tables of its [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State(pub u32);

/// A profile at one of its starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Index of the profile in [`Model::profiles`].
    pub profile: usize,
    /// First placement unit.
    pub start: u8,
}

/// The states of a model's GPUs, and what each becomes with one more slice.
#[derive(Debug)]
pub struct Table {
    model: Arc<Model>,
    places: Vec<Place>,
    /// For each profile, its part of `places`.
    of_profile: Vec<std::ops::Range<usize>>,
    keys: Vec<Key>,
    /// By occupied units: the states that occupy just these.
    by_units: Vec<Vec<State>>,
    /// By state and place.
    next: Vec<Option<State>>,
    limits: Limits,
}

/// What tells one state from another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    occupied: Mask,
    /// A bit for each [`Media`] that is there and that matters to some profile.
    media: u8,
    /// How many slices there are of each limited profile, four bits each.
    counts: u64,
}

/// What is limited otherwise than by room.
#[derive(Debug)]
struct Limits {
    /// The media bits that some profile does not go with.
    media: u8,
    /// For a profile of which fewer go on a GPU than its starts allow, where its count is in [`Key::counts`].
    counted: Vec<Option<u32>>,
}

impl Limits {
    fn of(model: &Model) -> Self {
        let asked = |media: Media| model.profiles.iter().any(|p| p.name.media() == media);
        let matters = |media: &Media| MEDIA.iter().any(|other| asked(*other) && !media.goes_with(*other));
        let media = MEDIA.iter().filter(|m| matters(m)).fold(0, |bits, m| bits | bit(*m));
        let mut shift = 0;
        let counted = model.profiles.iter().map(|profile| {
            let alone = matches!(profile.name.media(), Media::Extension | Media::All);
            let limited = usize::from(profile.max_count) < room_for(&profile.starts, profile.size);
            // Four bits hold the count of any GPU's slices; sixteen such profiles are more than any model has.
            let counts = limited && !(alone && profile.max_count == 1) && shift < u64::BITS;
            counts.then(|| {
                shift += 4;
                shift - 4
            })
        });
        let counted = counted.collect();
        Self { media, counted }
    }

    /// The key with one more slice; `None` when it does not go beside what is there.
    fn with(&self, model: &Model, key: Key, Place { profile, start }: Place) -> Option<Key> {
        let entry = model.profiles.get(profile)?;
        let span = Mask::span(start, entry.size);
        let media = entry.name.media();
        let there = |other: Media| key.media & bit(other) != 0;
        let clashes = MEDIA.into_iter().any(|m| there(m) && !media.goes_with(m));
        if span == Mask::default() || key.occupied.overlaps(span) || clashes {
            return None;
        }
        let mut counts = key.counts;
        if let Some(shift) = self.counted.get(profile).copied().flatten() {
            if (counts >> shift) & 0xF >= u64::from(entry.max_count.min(15)) {
                return None;
            }
            counts += 1 << shift;
        }
        Some(Key { occupied: key.occupied.with(span), media: key.media | bit(media) & self.media, counts })
    }
}

const MEDIA: [Media; 4] = [Media::Share, Media::Extension, Media::All, Media::None];

fn bit(media: Media) -> u8 {
    match media {
        Media::Share => 1,
        Media::Extension => 2,
        Media::All => 4,
        Media::None => 0,
    }
}

/// How many slices of a size go side by side at these starts, which ascend.
fn room_for(starts: &[u8], size: u8) -> usize {
    let mut end = 0;
    let fits = |start: &&u8| {
        let fits = u32::from(**start) >= end;
        if fits {
            end = u32::from(**start) + u32::from(size);
        }
        fits
    };
    starts.iter().filter(fits).count()
}

impl Table {
    /// The table of a model.
    pub fn new(model: &Arc<Model>) -> Self {
        let mut places = Vec::new();
        let mut of_profile = Vec::new();
        for (profile, entry) in model.profiles.iter().enumerate() {
            let first = places.len();
            places.extend(entry.starts.iter().map(|&start| Place { profile, start }));
            of_profile.push(first..places.len());
        }
        let limits = Limits::of(model);
        let mut table = Self {
            model: model.clone(),
            places,
            of_profile,
            keys: Vec::new(),
            by_units: vec![Vec::new(); 1 << model.units.min(MAX_UNITS)],
            next: Vec::new(),
            limits,
        };
        table.enter(Key::default());
        let places = table.places.clone();
        let mut state = 0;
        while let Some(&key) = table.keys.get(state) {
            for &place in &places {
                let next = table.limits.with(model, key, place).map(|key| table.enter(key));
                table.next.push(next);
            }
            state += 1;
        }
        table
    }

    fn enter(&mut self, key: Key) -> State {
        if let Some(known) = self.find(key) {
            return known;
        }
        let fresh = State(u32::try_from(self.keys.len()).unwrap_or(u32::MAX));
        self.keys.push(key);
        if let Some(states) = self.by_units.get_mut(usize::from(key.occupied.0)) {
            states.push(fresh);
        }
        fresh
    }

    fn find(&self, key: Key) -> Option<State> {
        let mut states = self.by_units.get(usize::from(key.occupied.0))?.iter().copied();
        states.find(|state| self.key(*state) == key)
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How many states there are; they are numbered from 0, the empty GPU.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never: an empty GPU is a state.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The state of a GPU with nothing on it.
    pub fn empty(&self) -> State {
        State(0)
    }

    /// All states.
    pub fn states(&self) -> impl Iterator<Item = State> + use<> {
        (0..u32::try_from(self.keys.len()).unwrap_or(u32::MAX)).map(State)
    }

    /// Index of a profile in [`Model::profiles`].
    pub fn profile(&self, name: &crate::profile::ProfileName) -> Option<usize> {
        self.model.profiles.iter().position(|p| p.name == *name)
    }

    /// The units that are occupied in a state.
    pub fn occupied(&self, state: State) -> Mask {
        self.key(state).occupied
    }

    /// Units that are free in a state.
    pub fn free(&self, state: State) -> u32 {
        u32::from(self.model.units).saturating_sub(self.occupied(state).count())
    }

    fn key(&self, State(state): State) -> Key {
        // A state of another table is nobody's: as good as a full GPU, on which nothing is placed.
        let full = Key { occupied: Mask::span(0, self.model.units), ..Key::default() };
        self.keys.get(state as usize).copied().unwrap_or(full)
    }

    /// The state of a GPU with these slices, and with `blocked` units taken by something else. Where no set of slices occupies
    /// just these units, it is the one with the fewest units that occupies them all: what fits beside it fits.
    ///
    /// Slices that do not go beside those before them, or are none of this model's, only take their room.
    pub fn state(&self, slices: impl IntoIterator<Item = Place>, blocked: Mask) -> State {
        let mut key = Key::default();
        for place in slices {
            key = self.limits.with(&self.model, key, place).unwrap_or_else(|| {
                let size = self.model.profiles.get(place.profile).map_or(0, |p| p.size);
                Key { occupied: key.occupied.with(Mask::span(place.start, size)), ..key }
            });
        }
        // Last, since a slice may lie in room that is kept: it has its media engines, and counts, all the same.
        key.occupied = key.occupied.with(blocked);
        self.find(key).unwrap_or_else(|| self.least_above(key))
    }

    fn least_above(&self, key: Key) -> State {
        let covers = |other: &Key| {
            other.occupied.with(key.occupied) == other.occupied && other.media & key.media == key.media
        };
        let counts = |other: &Key| {
            self.limits
                .counted
                .iter()
                .flatten()
                .all(|shift| (other.counts >> shift) & 0xF >= (key.counts >> shift) & 0xF)
        };
        let above = self.states().filter(|&s| covers(&self.key(s)) && counts(&self.key(s)));
        above.min_by_key(|&s| (self.key(s).occupied.count(), self.key(s))).unwrap_or(State(u32::MAX))
    }

    /// The state after one more slice; `None` when it does not fit.
    pub fn with(&self, state: State, place: Place) -> Option<State> {
        let at =
            self.of_profile.get(place.profile)?.clone().find(|&at| self.places[at].start == place.start)?;
        self.after(state, at)
    }

    fn after(&self, State(state): State, at: usize) -> Option<State> {
        self.next.get(state as usize * self.places.len() + at).copied().flatten()
    }

    /// Where one more slice of a profile fits, and what the state is then; by start, ascending.
    pub fn options(&self, state: State, profile: usize) -> impl Iterator<Item = (u8, State)> + '_ {
        let places = self.of_profile.get(profile).cloned().unwrap_or_default();
        places.filter_map(move |at| Some((self.places[at].start, self.after(state, at)?)))
    }

    /// Whether one more slice of a profile fits.
    pub fn admits(&self, state: State, profile: usize) -> bool {
        self.options(state, profile).next().is_some()
    }
}

#[cfg(test)]
mod tests;
