//! Room on a node's GPUs that is kept for workloads that have waited long: holds.
//!
//! A hold lies over whatever is in its room when it is entered. What runs there runs to its end; nothing new comes in beside
//! those for whom it is lifted.

use std::collections::BTreeMap;

use super::{Displaced, GpuBook, Ledger, NoFit, Origin, Slot};
use crate::engine::score::Cost;
use crate::engine::table;
use crate::geometry::{Mask, Slice};
use crate::id::GpuUuid;
use crate::node::Hold;
use crate::profile::ProfileName;
use crate::resources::Resources;
use crate::time::Timestamp;
use crate::workload::PodSetDemand;

/// The units that a placement may touch, by GPU.
pub type Units = BTreeMap<GpuUuid, Mask>;

/// What has to end before room is free; less is sooner. Field order is the ranking: nobody waits for what may never end if he
/// need not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    /// Units in use by others of which nobody knows until when.
    pub open_ended: u32,
    /// When the last of the others ends.
    pub until: Timestamp,
    /// Units in use by others.
    pub in_use: u32,
    /// Growth of the potential of the GPUs, once the room is filled: see [`Cost`].
    pub potential: i64,
}

impl Wait {
    /// That both have ended.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            open_ended: self.open_ended + other.open_ended,
            until: self.until.max(other.until),
            in_use: self.in_use + other.in_use,
            potential: self.potential + other.potential,
        }
    }

    /// Whether it is over sooner, or that is likelier.
    pub fn is_sooner_than(&self, other: &Self) -> bool {
        (self.open_ended, self.until, self.in_use) < (other.open_ended, other.until, other.in_use)
    }
}

/// When the slice at a place of the node ends to be used; `None` when nobody knows.
pub type Ends<'a> = dyn Fn(&GpuUuid, &Slice) -> Option<Timestamp> + 'a;

impl Ledger {
    /// The room that is kept.
    pub fn holds(&self) -> &[Hold] {
        &self.holds
    }

    /// Takes out the holds for which `lifted` says so.
    pub fn lift_holds(&mut self, lifted: impl Fn(&Hold) -> bool) -> Vec<Hold> {
        let (lifted, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut self.holds).into_iter().partition(lifted);
        self.holds = kept;
        if !lifted.is_empty() {
            self.note_held();
        }
        lifted
    }

    /// Enters holds, in an order that depends on nothing but what they are.
    pub fn enter_holds(&mut self, holds: impl IntoIterator<Item = Hold>) {
        self.holds.extend(holds);
        self.holds
            .sort_by(|a, b| (&a.workload.uid, &a.gpu, a.start).cmp(&(&b.workload.uid, &b.gpu, b.start)));
        self.note_held();
    }

    /// Brings the GPUs up to date with the holds.
    pub(super) fn note_held(&mut self) {
        for book in self.gpus.values_mut() {
            book.held = Mask::default();
        }
        for hold in &self.holds {
            if let Some(book) = self.gpus.get_mut(&hold.gpu) {
                book.held = book.held.with(hold.mask());
            }
        }
    }

    /// From now on new slices lie within these units.
    pub fn confine(&mut self, units: Units) {
        self.confined = Some(units);
    }

    /// From now on they may lie anywhere.
    pub fn release_bounds(&mut self) {
        self.confined = None;
    }

    /// Whether a new slice may lie there.
    fn allows(&self, gpu: &GpuUuid, units: Mask) -> bool {
        self.confined
            .as_ref()
            .is_none_or(|confined| confined.get(gpu).is_some_and(|allowed| allowed.with(units) == *allowed))
    }

    /// The best place for one more slice within the units to which the book is confined.
    pub(super) fn best_place_within(
        &self,
        profile: &ProfileName,
    ) -> Option<(Displaced, Cost, &GpuUuid, table::Place)> {
        let places = self.places(profile).filter(|(uuid, _, slice, _)| self.allows(uuid, slice.mask()));
        let places = places.filter_map(|(uuid, book, slice, place)| {
            let goes = |slot: &Slot| slot.yields() && is_in_the_way(book, &slice, slot);
            let slices = self.displaceable(book.slots.iter().filter(|slot| goes(slot)))?;
            let displaced = Displaced { slices, missed: book.missed(goes) };
            let rest = book.state(|slot| !goes(slot));
            let cost = book.kind.scores.cost_of(&book.kind.table, rest, place)?;
            Some((displaced, cost, uuid, place))
        });
        places.min_by_key(|(displaced, cost, uuid, _)| (*displaced, *cost, *uuid))
    }

    /// Every place that a slice of the profile can have on the usable GPUs, whatever is there.
    fn places(
        &self,
        profile: &ProfileName,
    ) -> impl Iterator<Item = (&GpuUuid, &GpuBook, Slice, table::Place)> {
        self.gpus_with(profile).flat_map(|(uuid, book, profile)| {
            let entry = &book.kind.table.model().profiles[profile];
            entry.starts.iter().map(move |&start| {
                let slice = Slice { start, size: entry.size, profile: entry.name.clone() };
                (uuid, book, slice, table::Place { profile, start })
            })
        })
    }

    /// Lets go of the slices in room that is kept that nobody has claimed: else they would go from one small pod to the next.
    /// Returns whether there were any.
    pub fn clear_kept_room(&mut self) -> bool {
        let mut cleared = false;
        while let Some((gpu, slice)) = self.spare_in_kept_room() {
            if let Some(book) = self.gpus.get_mut(&gpu) {
                book.slots.retain(|slot| slot.slice != slice);
            }
            cleared = true;
        }
        cleared
    }

    /// Slices that a new claim may count on.
    pub(super) fn reusable(&self, profile: &ProfileName) -> u32 {
        self.counted(profile).saturating_sub(self.going(profile))
    }

    /// Slices in kept room that are about to be let go of: no new claim may count on them.
    pub(super) fn going(&self, profile: &ProfileName) -> u32 {
        if self.holds.is_empty() {
            return 0;
        }
        let going = |book: &GpuBook| {
            let goes = |slot: &&Slot| {
                let there = slot.slice.profile == *profile && slot.slice.mask().overlaps(book.held);
                there && slot.counts() && slot.held && slot.leaving
            };
            book.slots.iter().filter(goes).count()
        };
        let going: usize = self.gpus.values().map(going).sum();
        u32::try_from(going).unwrap_or(u32::MAX)
    }

    fn spare_in_kept_room(&self) -> Option<(GpuUuid, Slice)> {
        let kept = self.gpus.iter().filter(|(_, book)| book.held != Mask::default());
        let mut slots = kept.flat_map(|(uuid, book)| {
            let there = book.slots.iter().filter(|slot| slot.slice.mask().overlaps(book.held));
            there.map(move |slot| (uuid, slot))
        });
        let goes = |slot: &Slot| slot.origin == Origin::Declared && !slot.held && slot.yields();
        let spare = |slot: &Slot| goes(slot) && self.displaceable(std::iter::once(slot)).is_some();
        slots.find(|(_, slot)| spare(slot)).map(|(uuid, slot)| (uuid.clone(), slot.slice.clone()))
    }

    /// The slices in the room of a hold that somebody uses or may come to use.
    pub fn in_the_way(&self, hold: &Hold) -> impl Iterator<Item = &Slice> {
        let slots = self.gpus.get(&hold.gpu).into_iter().flat_map(|book| &book.slots);
        let there = slots.filter(move |slot| slot.slice.mask().overlaps(hold.mask()));
        there.filter(|slot| self.is_taken(slot)).map(|slot| &slot.slice)
    }

    /// Whether a slot is in use, or may come to be: claims are counts, and so is what is spare.
    fn is_taken(&self, slot: &Slot) -> bool {
        match slot.origin {
            Origin::Foreign => true,
            Origin::Leaving => slot.held,
            Origin::Declared => slot.held || self.spare(&slot.slice.profile) == 0,
        }
    }

    /// The same book with other resources free.
    #[must_use]
    pub fn with_free(&self, free: Resources) -> Self {
        Self { free, ..self.clone() }
    }

    /// Where one more pod of the pod set would get room soonest if everybody who is in its way came to an end, and what it
    /// would wait for. The book is returned with the room kept; the units are the pod's.
    pub fn room_for_pod(&self, demand: &PodSetDemand, ends: &Ends<'_>) -> Result<(Wait, Self, Units), NoFit> {
        if let Some(resource) = self.free.first_lacking(&demand.requests) {
            return Err(NoFit::Lacks(resource.to_owned()));
        }
        let (mut wait, mut units, mut book) = (Wait::default(), Units::new(), self.clone());
        for (profile, count) in self.largest_first(&demand.slices)? {
            for _ in 0..count {
                let (more, gpu, slice) =
                    book.room_for_slice(&profile, ends).ok_or_else(|| NoFit::NoRoom(profile.clone()))?;
                wait = wait.and(more);
                let kept = units.entry(gpu.clone()).or_default();
                *kept = kept.with(slice.mask());
                if let Some(book) = book.gpus.get_mut(&gpu) {
                    book.held = book.held.with(slice.mask());
                }
            }
        }
        book.charge(&demand.requests, 1);
        Ok((wait, book, units))
    }

    fn room_for_slice(&self, profile: &ProfileName, ends: &Ends<'_>) -> Option<(Wait, GpuUuid, Slice)> {
        let places = self.places(profile).filter(|(uuid, _, slice, _)| self.allows(uuid, slice.mask()));
        let places = places.filter_map(|(uuid, book, slice, place)| {
            let goes = |slot: &&Slot| slot.origin != Origin::Foreign && is_in_the_way(book, &slice, slot);
            let rest = book.state(|slot| !goes(&slot));
            let cost = book.kind.scores.cost_of(&book.kind.table, rest, place)?;
            let in_the_way = book.slots.iter().filter(goes).filter(|slot| self.is_taken(slot));
            let wait = in_the_way.fold(Wait::default(), |wait, slot| {
                let units = u32::from(slot.slice.size);
                let until = ends(uuid, &slot.slice);
                wait.and(Wait {
                    open_ended: if until.is_none() { units } else { 0 },
                    until: until.unwrap_or_default(),
                    in_use: units,
                    potential: 0,
                })
            });
            Some((Wait { potential: cost.potential, ..wait }, cost, uuid, slice))
        });
        let best = places.min_by(|(a, cost_a, uuid_a, _), (b, cost_b, uuid_b, _)| {
            (a, cost_a, uuid_a).cmp(&(b, cost_b, uuid_b))
        });
        best.map(|(wait, _, uuid, slice)| (wait, uuid.clone(), slice))
    }

    /// The size of the largest of some slices; `None` when the node does not offer all of them.
    pub fn size_of(&self, slices: &BTreeMap<ProfileName, u32>) -> Option<u8> {
        let size = |profile| {
            self.gpus_with(profile).map(|(_, book, p)| book.kind.table.model().profiles[p].size).max()
        };
        slices.keys().map(size).try_fold(0, |largest, size| Some(largest.max(size?)))
    }

    /// Placement units of the usable GPUs.
    pub fn units(&self) -> u32 {
        let usable = self.gpus.values().filter(|book| book.usable);
        usable.map(|book| u32::from(book.kind.table.model().units)).sum()
    }
}

/// Whether a slot must go for a slice.
fn is_in_the_way(book: &GpuBook, slice: &Slice, slot: &Slot) -> bool {
    book.kind.table.model().check(slice, [&slot.slice]).is_err()
}
