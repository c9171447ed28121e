//! A whole cluster in one process, with a clock of its own: what surrounds the decisions, to see that they hold whatever
//! goes wrong around them.
//!
//! * [`api_server`]: objects, versions, preconditions, watches.

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
