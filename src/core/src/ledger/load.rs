//! What a node's GPUs have to hold, wherever on them it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{GpuBook, Ledger, Origin, Slot};
use crate::engine::kinds::Kind;
use crate::engine::table::{self, State};
use crate::geometry::Mask;
use crate::node::SliceState;
use crate::profile::ProfileName;

/// GPUs of one model, and what they have to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// The model.
    pub kind: Arc<Kind>,
    /// How many GPUs there are.
    pub gpus: u32,
    /// How many slices of each profile, by index in [`crate::geometry::Model::profiles`].
    pub slices: Vec<u32>,
}

impl Load {
    /// Joins loads of the same model.
    pub fn gather(loads: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for load in loads {
            match all.iter_mut().find(|known| known.kind == load.kind) {
                Some(known) => {
                    known.gpus += load.gpus;
                    known.slices.iter_mut().zip(load.slices).for_each(|(all, more)| *all += more);
                }
                None => all.push(load),
            }
        }
        all
    }
}

impl Ledger {
    /// What the usable GPUs have to hold, by model: what is claimed, and what is held or broken; not what stands idle beyond that.
    /// On a GPU where something is that is nobody's to move, a foreign instance or room that is held, there may be less room
    /// than so much: such a GPU and all that is on it is left out, or, if `all`, taken as if there were nothing strange on it.
    /// Which GPUs of a node with several models keep the claimed slices cannot be said; those that have them now are taken to.
    pub fn loads(&self, all: bool) -> Vec<Load> {
        let mut may_go = self.may_go();
        let (whole, strange): (Vec<_>, Vec<_>) =
            self.gpus.values().filter(|book| book.usable).partition(|book| !is_strange(book));
        // What may go is sought first where it is not counted, so that too much is counted rather than too little.
        let counted = if all { whole.iter().chain(&strange) } else { whole.iter().chain(&[]) };
        for book in strange.iter().filter(|_| !all) {
            book.slots.iter().for_each(|slot| _ = stays(slot, &mut may_go));
        }
        let loads = counted.map(|book| {
            let mut slices = vec![0; book.kind.table.model().profiles.len()];
            for slot in &book.slots {
                if let Some(place) = slot.place.filter(|_| stays(slot, &mut may_go)) {
                    slices[place.profile] += 1;
                }
            }
            Load { kind: book.kind.clone(), gpus: 1, slices }
        });
        Load::gather(loads)
    }
}

impl Ledger {
    /// The usable GPUs with what has to be on them: model, state, and those slices that are Slicegate's.
    pub fn contents(&self) -> Vec<(Arc<Kind>, State, Vec<table::Place>)> {
        let mut may_go = self.may_go();
        let contents = self.gpus.values().filter(|book| book.usable).map(|book| {
            let stay: Vec<bool> = book.slots.iter().map(|slot| stays(slot, &mut may_go)).collect();
            let ours = || book.slots.iter().zip(&stay).filter(|(_, stays)| **stays).map(|(slot, _)| slot);
            let foreign = book.slots.iter().filter(|slot| slot.origin == Origin::Foreign);
            let blocked = foreign.fold(book.held, |mask, slot| mask.with(slot.slice.mask()));
            let places: Vec<table::Place> = ours().filter_map(|slot| slot.place).collect();
            (book.kind.clone(), book.kind.table.state(places.iter().copied(), blocked), places)
        });
        contents.collect()
    }

    /// The usable GPUs as they are: model, state without what stands idle, and whether something is there that is nobody's to
    /// move. Those without are the GPUs of [`Ledger::loads`].
    pub fn cards(&self) -> Vec<(Arc<Kind>, State, bool)> {
        let strange = self.gpus.values().filter(|book| book.usable).map(is_strange);
        self.contents()
            .into_iter()
            .zip(strange)
            .map(|((kind, state, _), strange)| (kind, state, strange))
            .collect()
    }

    /// Placement units of the usable GPUs: those on which nothing is or is wanted and that are not held, and all.
    pub fn room(&self) -> (u32, u32) {
        let usable = self.gpus.values().filter(|book| book.usable);
        usable.fold((0, 0), |(free, all), book| {
            let taken = book.slots.iter().fold(book.held, |mask, slot| mask.with(slot.slice.mask()));
            let units = u32::from(book.kind.table.model().units);
            (free + units.saturating_sub(taken.count()), all + units)
        })
    }

    /// How many slices of each profile may go.
    fn may_go(&self) -> BTreeMap<&ProfileName, u32> {
        let mut may_go = BTreeMap::new();
        for slot in self.gpus.values().flat_map(|book| &book.slots) {
            let profile = &slot.slice.profile;
            may_go.entry(profile).or_insert_with(|| self.spare(profile));
        }
        may_go
    }
}

fn is_strange(book: &GpuBook) -> bool {
    book.held != Mask::default() || book.slots.iter().any(|slot| slot.origin == Origin::Foreign)
}

/// Whether a slice of ours has to be somewhere. Takes it out of what may go, if it may.
fn stays(slot: &Slot, may_go: &mut BTreeMap<&ProfileName, u32>) -> bool {
    match slot.origin {
        Origin::Foreign => false,
        Origin::Leaving => slot.held,
        Origin::Declared if slot.held || slot.is(SliceState::Failed) => true,
        Origin::Declared => match may_go.get_mut(&slot.slice.profile).filter(|left| **left > 0) {
            Some(left) => {
                *left -= 1;
                false
            }
            None => true,
        },
    }
}
