//! Slicegate.
pub mod agent;
pub mod api;
pub mod cli;
pub mod controller;
pub mod runtime;
