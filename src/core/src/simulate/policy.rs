//! What decides whether and where requests are placed.

use std::fmt;
use std::str::FromStr;

use super::choose::baseline::{Anywhere, Ranked, Rule, scores};
use super::choose::engine::Engine;
use super::demand::Request;
use super::fleet::{Fleet, Owner};
use super::inventory::{Catalogue, Inventory};
use super::oracle::Oracle;
use super::placing::{Limits, Placing};
use super::random::Random;
use crate::engine::pool::Gpu;
use crate::engine::table::Place;

/// A slice has been placed or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whose it is.
    pub owner: Owner,
    /// Its GPU.
    pub gpu: Gpu,
    /// The profile, by its index in the GPU's model, and the start.
    pub place: Place,
    /// Whether it was somewhere else before.
    pub moved: bool,
}

/// Decides about requests, which are told by their number.
pub trait Policy {
    /// A request has come; told once, before it is placed.
    fn note(&mut self, _request: &Request) {}

    /// Places all of a request at a time, or nothing; says whether. What is placed and moved for it is added to `steps`: what moves
    /// leaves its place before anything takes one.
    fn admit(&mut self, number: u32, request: &Request, now: f64, steps: &mut Vec<Step>) -> bool;

    /// A request that was admitted has ended.
    fn release(&mut self, number: u32);

    /// Whether a request that finds no room would, if everything could be moved, as far as that is certain.
    fn would_fit(&mut self, request: &Request) -> bool;

    /// Placement units in use.
    fn used(&self) -> u64;
}

/// The policies that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// The controller's engine.
    Slicegate,
    /// [`Rule::FirstFit`].
    FirstFit,
    /// [`Rule::BestFit`].
    BestFit,
    /// [`Rule::Mfi`].
    Mfi,
    /// [`Rule::Hami`].
    Hami,
    /// [`Rule::Fgd`].
    Fgd,
    /// Any place.
    Random,
    /// Whatever would fit if everything were moved: what no placement can do better than by much.
    Oracle,
}

impl Name {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Slicegate,
        Self::FirstFit,
        Self::BestFit,
        Self::Mfi,
        Self::Hami,
        Self::Fgd,
        Self::Random,
        Self::Oracle,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slicegate => "slicegate",
            Self::FirstFit => "first-fit",
            Self::BestFit => "best-fit",
            Self::Mfi => "mfi",
            Self::Hami => "hami",
            Self::Fgd => "fgd",
            Self::Random => "random",
            Self::Oracle => "oracle",
        }
    }

    /// The policy on the GPUs of an inventory. `shares` is how often each profile is asked for, for what goes by it without learning;
    /// the seed is for what decides at random. The limits are for `slicegate`: nothing else moves slices or knows ends, except that `fgd`
    /// moves as `slicegate` does, for comparison.
    pub fn policy(
        self,
        catalogue: &Catalogue,
        inventory: &Inventory,
        shares: &[f64],
        limits: Limits,
        seed: u64,
    ) -> Box<dyn Policy> {
        let fleet = || Fleet::new(catalogue, inventory);
        let ranked = |rule| -> Box<dyn Policy> {
            let fleet = fleet();
            let choose = Ranked::new(rule, &fleet, shares);
            Box::new(Placing::new(fleet, inventory, choose, Limits::default()))
        };
        match self {
            Self::Slicegate => {
                let fleet = fleet();
                let choose = Engine::new(&fleet);
                Box::new(Placing::new(fleet, inventory, choose, limits))
            }
            Self::Fgd if limits.moves > 0 => {
                let fleet = fleet();
                let choose = Engine::ranked(&fleet, scores(Rule::Fgd, &fleet, shares));
                let limits = Limits { known_durations: false, ..limits };
                Box::new(Placing::new(fleet, inventory, choose, limits))
            }
            Self::FirstFit => ranked(Rule::FirstFit),
            Self::BestFit => ranked(Rule::BestFit),
            Self::Mfi => ranked(Rule::Mfi),
            Self::Hami => ranked(Rule::Hami),
            Self::Fgd => ranked(Rule::Fgd),
            Self::Random => {
                Box::new(Placing::new(fleet(), inventory, Anywhere(Random::new(seed)), Limits::default()))
            }
            Self::Oracle => Box::new(Oracle::new(catalogue, inventory)),
        }
    }
}

/// No policy is called that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy {name:?}; use one of {}", Name::ALL.map(Name::as_str).join(", "))]
pub struct UnknownPolicy {
    /// What was asked for.
    pub name: String,
}

impl FromStr for Name {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == name)
            .ok_or_else(|| UnknownPolicy { name: name.to_owned() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
