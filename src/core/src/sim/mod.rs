//! A whole cluster in one process, with a clock of its own: what surrounds the decisions, to see that they hold whatever
//! goes wrong around them.
//!
//! * [`api_server`]: objects, versions, preconditions, watches. Public, so that it can be held against the real one.
//!
//! The rest is for the tests of this crate:
//!
//! * `objects`: the kinds, and how the decisions see them;
//! * `controller`, `agent`: what surrounds [`plan`](crate::plan::plan) and [`agent_step`](crate::agent::agent_step) in
//!   production: memories, watches, writes, journal;
//! * `machine`: NVML, kubelet and disk of a node; `kueue`, `jobs`: everybody else;
//! * `world`: the clock, and one queue of all that is to happen;
//! * `story`, `stories`: what people do and how it ends;
//! * `faults`: what goes wrong, at each point of a story's course once;
//! * `checks`: what must hold after every step.
//!
//! One story and one fault make a plan. A plan always takes the same course; one that goes wrong is told with the command that
//! plays it again.

pub mod api_server;

#[cfg(test)]
mod agent;
#[cfg(test)]
mod checks;
#[cfg(test)]
mod controller;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod kueue;
#[cfg(test)]
mod machine;
#[cfg(test)]
mod objects;
#[cfg(test)]
mod stories;
#[cfg(test)]
mod story;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
