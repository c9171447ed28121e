//! The placement engine on demand that is recorded or drawn, with no cluster, beside other ways to place.
//!
//! * [`inventory`]: the GPUs. [`demand`]: what is asked for, and when.
//! * [`policy`]: what decides. `slicegate` is the controller's own [`crate::engine`], the others are what is compared with.
//! * [`run`]: a course of events. [`outcome`], [`statistics`]: what came of it, and how sure that is over seeds.
//! * [`protocol`]: the evaluation and its tables. [`plot`]: a picture.
//!
//! Everything follows from its arguments: a seed says the same in every run, on every machine.

pub mod choose;
pub mod counts;
pub mod demand;
pub mod fleet;
pub mod inventory;
pub mod oracle;
pub mod outcome;
pub mod placing;
pub mod plot;
pub mod policy;
pub mod protocol;
pub mod random;
pub mod run;
pub mod statistics;

#[cfg(test)]
mod tests;
