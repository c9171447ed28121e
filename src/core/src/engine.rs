//! The placement engine: where on which GPU a slice goes, in a time that does not grow with the cluster.
//!
//! What a decision needs to know of one GPU is its [`table::State`]: which units are occupied, and who has the media engines.
//! A model has few of them (192 occupancies on 8 units), so a [`table::Table`] lists what each becomes with each slice,
//! [`score::Scores`] ranks the states for each profile, and a [`pool::Pool`] keeps the GPUs in buckets by state with one bit
//! for each bucket that is not empty: the best place is the first bit in the profile's ranking.

pub mod kinds;
pub mod learn;
pub mod lifetime;
pub mod pool;
mod potential;
pub mod rate;
pub mod relocate;
pub mod repack;
pub mod score;
pub mod table;
