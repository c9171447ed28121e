//! Where one slice goes.

use super::fleet::Fleet;
use crate::engine::pool::Gpu;
use crate::engine::table::Place;

pub mod baseline;
pub mod engine;

/// A slice that wants a place.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Its profile, by the index in the catalogue.
    pub profile: usize,
    /// The node that it must be on.
    pub node: Option<u32>,
    /// Now, in seconds.
    pub now: f64,
    /// When it ends; infinite if that is not told.
    pub ends: f64,
}

/// Where a slice goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// The GPU.
    pub gpu: Gpu,
    /// The profile, by the index in the GPU's model, and the start.
    pub place: Place,
}

/// A slice in the way of another, and where it goes instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Which it is of [`Fleet::placed`] of the GPU where room is made.
    pub index: usize,
    /// Where it goes.
    pub to: Gpu,
    /// Its start there.
    pub start: u8,
}

/// A rule for where one slice goes.
pub trait Choose {
    /// Where the slice goes; `None` if it fits nowhere.
    fn choose(&mut self, fleet: &Fleet, wanted: &Wanted) -> Option<Spot>;

    /// Told of every request, before its slices are placed.
    fn asked(&mut self, _fleet: &Fleet, _profile: usize, _slices: u32, _duration: Option<f64>) {}

    /// Told of every GPU whose state has changed.
    fn changed(&mut self, _fleet: &Fleet, _gpu: Gpu) {}

    /// How to make room by at most `most` moves; `None` if the rule knows no way, as most do not.
    fn make_room(&mut self, _fleet: &Fleet, _wanted: &Wanted, _most: usize) -> Option<(Spot, Vec<Shift>)> {
        None
    }
}
