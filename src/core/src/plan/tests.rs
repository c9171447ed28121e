//! The plan against a small world that does what it asks for, as API server, Kueue, agents and kubelets would.

mod admitting;
mod histories;
mod holders;
mod mending;
mod messages;
mod placing;
mod releasing;
mod steering;
mod world;
